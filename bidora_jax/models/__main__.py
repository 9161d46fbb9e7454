"""python -m bidora_jax.models: the list of models, see bidora_jax/catalog.py."""

from bidora_jax.catalog import main
from bidora_jax.errors import command

command(main)
