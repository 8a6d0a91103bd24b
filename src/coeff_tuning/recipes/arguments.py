"""The flags of a run, as dataclasses for `transformers.HfArgumentParser`."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import TrainingArguments

METHODS = ("linear", "coeff", "lora", "dora", "coeff+lora", "coeff+dora", "full")
TASKS = ("text-classification", "image-classification", "causal-lm")


@dataclass
class ModelArguments:
    """Which model, and how it sees its input.

    Attributes:
        model_name_or_path: hub id, local folder, or offline name.
        pooling: how token features become one feature vector per text.
        image_size: side of the square images that the model sees.
        max_seq_length: longest input in tokens (block length for causal-lm).
    """

    model_name_or_path: str = field(
        default="", metadata={"help": "Hub id, local folder, or offline name (minilm, dinov2-small, smollm2-135m)."}
    )
    pooling: str = field(
        default="auto",
        metadata={
            "help": "Text features for the head: 'mean' over tokens, 'model' (the architecture's own head), or "
            "'auto': mean for sentence encoders that say so, else model.",
            "choices": ["auto", "mean", "model"],
        },
    )
    image_size: int | None = field(
        default=None, metadata={"help": "Side of the square images the model sees. Default: the model's own."}
    )
    max_seq_length: int = field(default=256, metadata={"help": "Longest input in tokens; block length for causal-lm."})


@dataclass
class DataArguments:
    """Which data, and which part of it.

    Attributes:
        dataset: hub id, local folder or file, or offline name.
        dataset_config: configuration name of a hub data set.
        train_file: local training file.
        validation_file: local validation file.
        test_file: local test file.
        text_column: column that holds the text.
        image_column: column that holds the image.
        label_column: column that holds the label.
        train_samples_per_class: training samples drawn per class.
        max_train_samples: training samples drawn in all.
        max_eval_samples: evaluation samples drawn in all.
        holdout_fraction: part of the data held out when the data set has no split for it.
        eval_split: which samples the reported score is measured on.
    """

    dataset: str | None = field(
        default=None,
        metadata={"help": "Hub id, local imagefolder / csv / jsonl / parquet, or offline name (bbc-news, digits)."},
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration name of a hub data set."})
    train_file: str | None = field(default=None, metadata={"help": "Training file (csv, jsonl, parquet, txt)."})
    validation_file: str | None = field(default=None, metadata={"help": "Validation file."})
    test_file: str | None = field(default=None, metadata={"help": "Test file."})
    text_column: str = field(default="text", metadata={"help": "Column that holds the text."})
    image_column: str = field(default="image", metadata={"help": "Column that holds the image."})
    label_column: str = field(default="label", metadata={"help": "Column that holds the label."})
    train_samples_per_class: int | None = field(
        default=None, metadata={"help": "Draw this many training samples of each class (by the seed)."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Draw at most this many training samples."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Draw at most this many held-out samples."})
    holdout_fraction: float = field(
        default=0.5, metadata={"help": "Part of the data held out when it has neither a test nor a validation split."}
    )
    eval_split: str = field(
        default="test",
        metadata={
            "help": "'test': the held-out split. 'validation': training data that is not trained on; choose "
            "settings with it, so that the held-out split stays unseen.",
            "choices": ["test", "validation"],
        },
    )


@dataclass
class MethodArguments:
    """What is trained.

    Attributes:
        method: the method, one of `METHODS`.
        head_start: where the head starts.
        coeff_learning_rate: learning rate of the coefficients.
        coeff_weight_decay: weight decay of the coefficients.
        coeff_dropout: dropout on the entries of the coefficients.
        coeff_layers: numbers of the layers that get coefficients.
        coeff_parameterization: whether the whole matrix or its difference from the identity is trained.
        coeff_init: start of what is trained.
        lora_learning_rate: learning rate of LoRA and DoRA.
        lora_r: rank of LoRA and DoRA.
        lora_alpha: scale of LoRA and DoRA.
        lora_dropout: dropout on the input of LoRA and DoRA.
        lora_target_modules: names of the linear layers that LoRA and DoRA change.
    """

    method: str = field(
        default="coeff",
        metadata={"help": "What is trained, besides the head, which always is.", "choices": list(METHODS)},
    )
    head_start: str = field(
        default="auto",
        metadata={
            "help": "Where the head starts: 'probe', the converged linear probe; 'random' (the checkpoint's, where it "
            "has one); or 'auto': probe for a new head of one layer and at most 5,000 training samples, else random.",
            "choices": ["auto", "probe", "random"],
        },
    )
    coeff_learning_rate: float = field(
        default=1e-2, metadata={"help": "Learning rate of the coefficients: 10 to 50 times LoRA's."}
    )
    coeff_weight_decay: float = field(default=0.0, metadata={"help": "Weight decay of the coefficients."})
    coeff_dropout: float = field(default=0.2, metadata={"help": "Dropout on the entries of the coefficients."})
    coeff_layers: list[int] | None = field(
        default=None, metadata={"help": "Numbers of the layers that get coefficients. Default: all."}
    )
    coeff_parameterization: str = field(
        default="residual",
        metadata={"help": "'residual': train the difference from the identity; 'direct': the whole matrix."},
    )
    coeff_init: str | None = field(
        default=None,
        metadata={"help": "Start: 'zero', 'identity' or 'random'. Default: the one that is the pretrained model."},
    )
    lora_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of LoRA / DoRA. Default: that of the head."}
    )
    lora_r: int = field(default=8, metadata={"help": "Rank of LoRA / DoRA."})
    lora_alpha: int = field(default=16, metadata={"help": "Scale of LoRA / DoRA."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout on the input of LoRA / DoRA."})
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "Linear layers for LoRA / DoRA. Default: query and value."}
    )


@dataclass
class RecipeArguments(TrainingArguments):  # type: ignore[misc]
    """`transformers.TrainingArguments` with defaults for small data, and a run folder that is not overwritten.

    Attributes:
        output_dir: the run folder.
        overwrite_output_dir: replace the run folder once the new run is complete.
        learning_rate: learning rate of the head (of everything for `full`).
    """

    output_dir: str | None = field(default=None, metadata={"help": "Run folder. Default: runs/<task>-<method>."})
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Replace a run folder that exists, once the new run is complete."}
    )
    learning_rate: float = field(default=1e-3, metadata={"help": "Learning rate of the head (full: 5e-5, everything)."})
    num_train_epochs: float = field(default=30.0, metadata={"help": "Epochs."})
    per_device_train_batch_size: int = field(default=8, metadata={"help": "Training batch size per device."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Evaluation batch size per device."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning rate schedule."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Warm-up steps; below 1: part of all steps."})
    save_strategy: str = field(default="epoch", metadata={"help": "When checkpoints are saved."})
    save_total_limit: int | None = field(default=1, metadata={"help": "Checkpoints that are kept."})
    logging_strategy: str = field(default="epoch", metadata={"help": "When the training loss is logged."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Drop columns the model does not take."})
    dataloader_pin_memory: bool = field(default=False, metadata={"help": "Pin memory for copies to a GPU."})
