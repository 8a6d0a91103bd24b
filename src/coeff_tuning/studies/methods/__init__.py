"""Methods that PEFT does not have for vision, for timm's vision transformers; small, and for comparison only.

- `fact`: FacT-TT, one low-rank change of all weight matrices at once
- `ssf`: scale and shift after every operation
- `adapter`: a bottleneck after each MLP
- `prompts`: VPT-shallow, learned tokens beside the patches
- `vit`: what these ask of a model

Each has `attach(model, ...)`, which changes the model in place and returns what is to be trained. All but prompts
start as the model they are attached to.
"""
