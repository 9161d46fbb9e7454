"""The devices of a run, `mesh.replica` × `mesh.shard` × `mesh.tensor` of those of this process or of several, and what does not
run on several yet.

What is not known to give the numbers of one device is refused by name. models/spread.py does the rest.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bidora_jax.config import Config
from bidora_jax.errors import InputError
from bidora_jax.machine import hosts

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from bidora_jax.models.adapters.adapter import Adapter
    from bidora_jax.models.architectures.architecture import Architecture
    from bidora_jax.models.spread import Placement
    from bidora_jax.training.problem import Problem


def devices(config: Config) -> int:
    """How many devices the settings ask for."""
    return config.mesh.devices


def in_words(config: Config) -> str:
    tensor = f" × mesh.tensor {config.mesh.tensor}" if config.mesh.tensor > 1 else ""
    return f"mesh.replica {config.mesh.replica} × mesh.shard {config.mesh.shard}{tensor}"


def wrong_settings(config: Config) -> list[str]:
    """What is wrong with the settings beside a mesh of several devices, in lines."""
    if min(config.mesh.replica, config.mesh.shard, config.mesh.tensor) < 1 or devices(config) == 1:
        return []
    wrong, batch, parts = [], config.data.batch_size, config.mesh.row_parts
    if batch % parts:
        each = "devices" if config.mesh.tensor == 1 else f"groups of {config.mesh.tensor} devices"
        wrong.append(
            f"data.batch_size {batch} cannot be divided among the {parts} {each} of {in_words(config)}: it counts the records of "
            f"all of them, so take a multiple of {parts}, or let more devices share each product, with mesh.tensor"
        )
    if config.mesh.tensor > 1:
        wrong += [
            f"{setting} does not run where devices share the products of a layer, and {in_words(config)} asks for that: use "
            "mesh.shard or mesh.replica instead of mesh.tensor"
            for setting in _of_whole_products(config)
        ]
    return wrong + [
        f"{setting} works on one device only, and {in_words(config)} asks for {devices(config)}: leave one of the two out"
        for setting in of_one_device(config)
    ]


def _of_whole_products(config: Config) -> list[str]:
    """The settings that mesh.tensor does not know, with their values."""
    alone = {
        f"task.type {config.task.type}": config.task.type not in ("auto", "language_modeling"),
        f"search.gram_penalty {config.search.gram_penalty:g}": config.search.gram_penalty > 0,
    }
    return [setting for setting, refused in alone.items() if refused]


def of_one_device(config: Config) -> list[str]:
    """The settings that were tried on one device only, with their values."""
    alone = {
        f"model.remat {config.model.remat}": config.model.remat == "offload",
        f"model.attention {config.model.attention}": config.model.attention == "cudnn",
        f"samples.every {config.samples.every}": config.samples.every > 0,
    }
    return [setting for setting, refused in alone.items() if refused]


def check_devices(config: Config) -> None:
    """InputError for more devices than JAX finds here, and of several processes for other ones than all of theirs. Says where a
    run leaves devices idle."""
    found = devices_found()
    if devices(config) == 1 and not hosts.several():
        if len(found) > 1:
            print(
                f"{len(found)} devices ({found[0].device_kind}) are here, and this run takes one: --mesh.replica {len(found)} "
                "divides a step's records among them, and --auto chooses a mesh"
            )
        return
    if hosts.several() and devices(config) != len(found):
        raise InputError(
            f"{in_words(config)} is {devices(config)} devices, and the {hosts.count()} processes have {len(found)}: take all "
            f"of them, with --mesh.replica {len(found)} for a whole base on each, or with --mesh.shard to cut it"
        )
    if devices(config) > len(found):
        flag = f"--xla_force_host_platform_device_count={devices(config)}"
        cpu = f"; to try it, XLA_FLAGS={flag} makes several of a CPU" if found[0].platform == "cpu" else ""
        raise InputError(
            f"{in_words(config)} needs {devices(config)} devices, and JAX finds {len(found)} ({found[0].device_kind}) on this "
            f"machine: lower them{cpu}"
        )


def devices_found() -> list[Any]:
    """Those of all processes, or of this one where it is alone."""
    import jax

    return jax.devices() if hosts.several() else jax.local_devices()


def _mesh(config: Config) -> "Mesh":
    from bidora_jax.models.spread import mesh_over

    return mesh_over(devices_found(), config.mesh.replica, config.mesh.shard, config.mesh.tensor)


def placement(config: Config, model: "Architecture", adapter: "Adapter") -> "Placement | None":
    """Where a base is put while it is read; None of one device. InputError for a model that was tried on one only."""
    if devices(config) == 1:
        return None
    from bidora_jax.models.architectures.encoder import EncoderConfig
    from bidora_jax.models.spread import Placement

    _check_shared_products(config, model, adapter)
    relative = model.relative if isinstance(model, EncoderConfig) else None
    if adapter.dropout and relative is not None and relative.shared:
        raise InputError(
            f"adapter.dropout {adapter.dropout} works on one device only where a model's texts and relative positions pass "
            f"one projection, as DeBERTa-v3's do, and {in_words(config)} asks for {devices(config)}: leave one of the two out"
        )
    return Placement(_mesh(config))


def _check_shared_products(config: Config, model: "Architecture", adapter: "Adapter") -> None:
    """InputError for a model or a task whose products devices cannot share as mesh.tensor asks."""
    from bidora_jax.models import tensor
    from bidora_jax.models.architectures.decoder import DecoderConfig

    count = config.mesh.tensor
    if count == 1:
        return
    if not isinstance(model, DecoderConfig) or adapter.head is not None:
        kind = "an encoder" if not isinstance(model, DecoderConfig) else "a classifier"
        raise InputError(
            f"mesh.tensor {count} is for decoders that are trained as language models, and {config.model.path} is {kind}: use "
            "mesh.shard or mesh.replica"
        )
    uneven = tensor.uneven(model, count)
    if uneven:
        raise InputError(
            f"mesh.tensor {count}: so many devices cannot share {' and '.join(uneven)} of {config.model.path} evenly; take a "
            "divisor of all of these, or mesh.shard"
        )


def spread(config: Config, problem: "Problem") -> "Problem":
    """The problem over the devices that the settings ask for; of one, the problem itself."""
    if devices(config) == 1:
        return problem
    from bidora_jax.kernels.quantized import tree_bytes
    from bidora_jax.models.spread import Spread
    from bidora_jax.planning.footprint import gigabytes

    found = devices_found()
    over = Spread(_mesh(config), problem.base)
    held, whole = over.held_bytes(problem.base), tree_bytes(problem.base)
    print(
        f"{in_words(config)}: {devices(config)} of {len(found)} devices ({found[0].device_kind}), each with {gigabytes(held)} of "
        f"the base's {gigabytes(whole)}; the first one alone answers test records and proves what is written"
    )
    # cuDNN's attention has not been tried inside a shard_map.
    model = replace(problem.model, attention="chunked")
    return replace(problem, model=model, base=over.place(problem.base), spread=over)
