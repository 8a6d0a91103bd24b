"""What coefficients cost as models grow: counted from published shapes, with times projected from stored rows.

- `shapes`: the architectures
- `cost`: numbers, bytes, FLOPs and projected time
- `study`: table, figure and rows
"""
