"""`coeff-tuning vl`: train on all four tasks, measure each, save."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, HfArgumentParser, set_seed

from coeff_tuning.errors import DataError, RunError
from coeff_tuning.recipes import run_folder
from coeff_tuning.recipes.arguments import MethodArguments, RecipeArguments
from coeff_tuning.recipes.trainer import CoeffTrainer
from coeff_tuning.recipes.vision_language import readers
from coeff_tuning.recipes.vision_language.data import Collator, RoundRobin
from coeff_tuning.recipes.vision_language.model import PROJECTION, VisionBart
from coeff_tuning.recipes.vision_language.scoring import score

METHODS = ("coeff", "lora", "dora", "coeff+lora", "coeff+dora")


@dataclass
class VLArguments:
    """Model and data.

    Attributes:
        data: folder of all tasks.
        model_name_or_path: a BART.
        visual_width: features of one grid cell.
        text_length: longest text.
        num_beams: beams of generation.
    """

    data: str = field(metadata={"help": "Folder with vqa, gqa, nlvr and caption."})
    model_name_or_path: str = field(default="facebook/bart-base", metadata={"help": "A BART."})
    visual_width: int = field(default=2048, metadata={"help": "Features of one grid cell."})
    text_length: int = field(default=20, metadata={"help": "Longest text, in tokens."})
    num_beams: int = field(default=5, metadata={"help": "Beams of generation."})


class VLTrainer(CoeffTrainer):
    """Tasks take turns, batch by batch."""

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        return RoundRobin(self.train_dataset, self.args.per_device_train_batch_size, self.args.seed)


def add_method(model: Any, arguments: MethodArguments) -> Any:
    """Freeze the model, then add what is trained beside the projection.

    Args:
        model: a `VisionBart`.
        arguments: the method.

    Returns:
        A `PeftModel`.

    Raises:
        RunError: the method is not one of `METHODS`.
    """
    import peft

    from coeff_tuning import CoeffConfig, add_coeff

    if arguments.method not in METHODS:
        raise RunError(f"--method must be one of {', '.join(METHODS)}; got {arguments.method!r}")
    base = arguments.method.removeprefix("coeff+")
    dropout = arguments.coeff_dropout
    if base == "coeff":
        return peft.get_peft_model(model, CoeffConfig(coeff_dropout=dropout, modules_to_save=[PROJECTION]))
    config = peft.LoraConfig(
        r=arguments.lora_r,
        lora_alpha=arguments.lora_alpha,
        lora_dropout=arguments.lora_dropout,
        target_modules=arguments.lora_target_modules or ["q_proj", "v_proj"],
        use_dora=base == "dora",
        modules_to_save=[PROJECTION],
    )
    adapted = peft.get_peft_model(model, config)
    return adapted if base == arguments.method else add_coeff(adapted, CoeffConfig(coeff_dropout=dropout))


def main(argv: list[str]) -> None:
    """Train, measure and save.

    Args:
        argv: the command line after `vl`.

    Raises:
        DataError: an item cannot be used.
    """
    parser = HfArgumentParser(
        [VLArguments, MethodArguments, RecipeArguments],
        prog="coeff-tuning vl",
        epilog="example: coeff-tuning vl --data data/vl --method coeff+lora --lora_r 128 --output_dir runs/vl",
    )
    about, method, training = parser.parse_args_into_dataclasses(argv)
    training.output_dir = training.output_dir or f"runs/vl-{method.method}"
    training.label_names = ["labels"]
    folder = Path(training.output_dir)
    settings = {**asdict(about), **asdict(method), "seed": training.seed, "learning_rate": training.learning_rate}
    settings |= {"epochs": training.num_train_epochs, "batch": training.per_device_train_batch_size}
    checkpoint = run_folder.start(
        folder, settings, training.resume_from_checkpoint, overwrite=training.overwrite_output_dir
    )
    readers.require("pycocoevalcap.cider.cider")
    splits = {s: [i for t in readers.TASKS for i in readers.read(Path(about.data), t, s)] for s in ("train", "val")}
    for item in splits["train"] + splits["val"]:
        for path in item.features:
            readers.load_features(path, item.name, about.visual_width, only_check=True)
    set_seed(training.seed)
    config = AutoConfig.from_pretrained(about.model_name_or_path)
    if config.model_type != "bart":
        raise DataError(f"{about.model_name_or_path} is a {config.model_type}; this recipe needs a BART")
    config.visual_width = about.visual_width
    tokenizer = AutoTokenizer.from_pretrained(about.model_name_or_path)
    model = add_method(VisionBart.from_pretrained(about.model_name_or_path, config=config), method)
    collator = Collator(tokenizer, about.visual_width, about.text_length)
    run_folder.claim(folder, settings, checkpoint)
    rates = {"coeff_learning_rate": method.coeff_learning_rate, "lora_learning_rate": method.lora_learning_rate}
    trainer = VLTrainer(model=model, args=training, train_dataset=splits["train"], data_collator=collator, **rates)
    trainer.train(resume_from_checkpoint=checkpoint)
    scores = {t: evaluate(model, collator, [i for i in splits["val"] if i.task == t], about) for t in readers.TASKS}
    metrics = {"method": method.method, **scores, "average": sum(scores.values()) / len(scores)}
    with run_folder.replacing(folder) as staging:
        model.save_pretrained(str(staging))
        (staging / run_folder.CONFIG_FILE).write_text(readers.require("yaml").safe_dump(settings, sort_keys=False))
        (staging / run_folder.METRICS_FILE).write_text(json.dumps(metrics, indent=2) + "\n")
    print(json.dumps(metrics, indent=2))


@torch.no_grad()
def evaluate(model: Any, collator: Collator, items: list[readers.Item], about: VLArguments, batch: int = 64) -> float:
    """Generate for every item of one task, and score.

    Args:
        model: the trained model.
        collator: of its batches.
        items: of one task.
        about: beams and length.
        batch: items at once.

    Returns:
        The score.
    """
    model.eval()
    base, texts = model.get_base_model(), []
    for start in range(0, len(items), batch):
        inputs = {k: v.to(base.device) for k, v in collator(items[start : start + batch]).items()}
        embedded = base.join(inputs["features"], inputs["input_ids"])
        sizes = {"num_beams": about.num_beams, "max_new_tokens": about.text_length}
        ids = base.generate(inputs_embeds=embedded, attention_mask=inputs["attention_mask"], **sizes)
        texts += collator.tokenizer.batch_decode(ids, skip_special_tokens=True)
    return score(items[0].task, items, texts)
