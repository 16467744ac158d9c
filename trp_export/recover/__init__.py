"""Win back accuracy without labels: refit in closed form, then distillation from the original."""
