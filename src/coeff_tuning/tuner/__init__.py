"""The PEFT method: who owns the coefficients, how they are attached, saved, loaded and combined.

- `config`, `layer`, `model`, `register`: settings, numbers, life cycle, and the entry in PEFT
- `targets`, `checks`, `fit`: what must hold before attaching, in use, and before saved numbers are loaded
- `combine`, `combined`: beside another method: adding and loading, and the class that PEFT's calls then go to
- `many`, `mixed_batch`, `weighted`: many adapters: loading them, a batch of them, sums of them
- `merge`, `approximate`, `factors`: into the weights, exactly; with the least error; the algebra of that
- `groups`: heads that share one value head
"""
