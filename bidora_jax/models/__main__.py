"""python -m bidora_jax.models: the list of models, see bidora_jax/list_models.py."""

from bidora_jax.errors import command
from bidora_jax.list_models import main

command(main)
