"""The paper's evidence, one command each: `coeff-tuning study NAME`.

- `hull`: the toy study; coefficients break out of the convex hull of the values
- `vtab`: VTAB-1k, a vision transformer with many methods; `methods`: those that PEFT does not have
- `command`: the flags
- `rows`, `tables`: what is stored, and tables made of it
"""
