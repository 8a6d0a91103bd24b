"""Tasks run from the command line: data, model, method, `Trainer`, saved run.

One module per step, in the order in which a run uses them:

- `arguments`: the flags of a run, as dataclasses; `--config file.yaml` takes the same keys
- `assets`, `convert`: pretrained models and data sets that need no model hub
- `data`, `checks`: splits, and the errors that are worth raising before training
- `tasks`: what a task does to data and model (`text-classification`, `image-classification`, `causal-lm`)
- `methods`, `pooling`, `probe`: what is trained
- `trainer`: learning rates of their own for coefficients, and a resume that restores every adapter
- `distributed`: the same run in several processes
- `run_folder`, `plots`: what is left on disk
- `table`: several runs side by side
- `train`, `predict`, `compare`, `sweep`, `demo`: the subcommands
"""
