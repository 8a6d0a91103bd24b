"""VTAB-1k as this literature runs it: 19 tasks of 1,000 images, one vision transformer, many methods.

- `tasks`: the 19 tasks
- `data`: lists of images, checked, as data sets
- `recipes`: how each method is trained, and what is searched
- `model`: a timm model with a method on it
- `training`: one training run
- `study`: search, final runs, rows; goes on where it was interrupted
- `report`: means
"""
