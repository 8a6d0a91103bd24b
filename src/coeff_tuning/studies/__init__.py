"""The paper's evidence, one command each: `coeff-tuning study NAME`.

- `hull`: the toy study; coefficients break out of the convex hull of the values
- `command`: the flags
- `rows`, `tables`: what is stored, and tables made of it
"""
