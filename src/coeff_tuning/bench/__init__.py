"""Benchmarks of the op and of whole models: `coeff-tuning bench`. Rows are stored; tables and plots are made of rows.

One module per step:

- `shapes`: the calls of the op that are measured, their goals and their FLOPs
- `calls`: inputs, forward and backward, of torch's own attention and of every backend
- `gate`: no speed without a correct result
- `timing`: interleaved runs, medians and quantiles
- `memory`: peak memory, each figure from a process of its own
- `op`: the above together
- `training`, `serving`: whole models; `model` runs them
- `rows`, `report`, `plot`: what is stored, printed and drawn
- `command`: the flags
"""
