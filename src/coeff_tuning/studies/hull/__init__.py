"""The toy study: outputs of plain attention stay in the convex hull of the values, mixed ones need not.

- `geometry`: points and hulls in the plane
- `layer`: one attention layer whose values can be drawn
- `experiment`: what is trained on which targets, and what is measured
- `report`, `pictures`: tables, figure and animation, made of rows
"""
