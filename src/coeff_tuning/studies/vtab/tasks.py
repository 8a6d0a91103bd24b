"""The 19 tasks of VTAB-1k: folder, number of classes, group."""

from __future__ import annotations

from coeff_tuning.errors import RunError

GROUPS: dict[str, dict[str, int]] = {
    "natural": {
        "cifar": 100,
        "caltech101": 102,
        "dtd": 47,
        "oxford_flowers102": 102,
        "oxford_iiit_pet": 37,
        "svhn": 10,
        "sun397": 397,
    },
    "specialized": {"patch_camelyon": 2, "eurosat": 10, "resisc45": 45, "diabetic_retinopathy": 5},
    "structured": {
        "clevr_count": 8,
        "clevr_dist": 6,
        "dmlab": 6,
        "kitti": 4,
        "dsprites_loc": 16,
        "dsprites_ori": 16,
        "smallnorb_azi": 18,
        "smallnorb_ele": 9,
    },
}
CLASSES = {task: classes for tasks in GROUPS.values() for task, classes in tasks.items()}
GROUP_OF = {task: group for group, tasks in GROUPS.items() for task in tasks}


def parse(text: str, known: list[str], what: str) -> list[str]:
    """Read names separated by commas.

    Args:
        text: names, or "all".
        known: all names.
        what: the flag, for the message.

    Returns:
        The names.

    Raises:
        RunError: one is unknown.
    """
    names = known if text == "all" else text.split(",")
    if unknown := [name for name in names if name not in known]:
        raise RunError(f"{what} must be 'all' or some of {', '.join(known)}; got {', '.join(unknown)}")
    return names
