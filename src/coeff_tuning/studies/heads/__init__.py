"""How the number of heads changes what coefficients gain: one width, trained from scratch with H = 1, 2, 4, 8, 16.

- `experiment`: digits, a small vision transformer, its first training, the probe and the coefficients
- `study`: search, final runs, rows
- `report`, `picture`: tables and figure, made of rows
"""
