"""The PEFT method: who owns the coefficients, how they are attached, saved, loaded and combined."""
