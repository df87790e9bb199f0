"""Where tensors on a CPU lie, and what that costs: the arena, and how its memory is forecast."""
