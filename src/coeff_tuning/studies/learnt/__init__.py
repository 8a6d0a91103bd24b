"""What coefficients become: matrices trained on few samples of real data, and what they do to the attention maps.

- `measures`: numbers that describe a matrix, and how much two matrices agree
- `study`: runs and rows; a row holds the matrices themselves
- `report`: tables, made of rows
- `picture`: the figure, made of rows
"""
