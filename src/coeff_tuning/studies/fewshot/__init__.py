"""Few samples, real weights: coefficients beside the converged probe, LoRA, DoRA and their combinations.

- `settings`: which model on which data
- `methods`: what is compared, and what is searched for each
- `study`: search, final runs, rows; goes on where it was interrupted
- `report`: tables, made of rows
- `picture`: the figure, made of rows
"""
