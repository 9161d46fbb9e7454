"""python -m bidora_jax.data: what a run will train on, see bidora_jax/show_data.py."""

from bidora_jax.errors import command
from bidora_jax.show_data import main

command(main)
