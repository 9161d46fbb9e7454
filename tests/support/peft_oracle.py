"""PEFT as the oracle: its adapter on a transformers model, and the warnings of its own that it gives. Imports torch when asked."""

# PEFT 0.21 asks transformers 5 for a name it deprecates; every other warning of theirs stays an error.
DEPRECATED = "`is_gradient_checkpointing` is deprecated"
TIED = "ignore:Model has `tie_word_embeddings=True` and a tied layer is part of the adapter:UserWarning"


def peft_model(model, settings, save_start=None):
    """PEFT's adapter on a transformers model, with everything that is trained made random."""
    import peft as oracle_peft
    import torch

    wanted = oracle_peft.LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, use_rslora=settings.rslora, lora_dropout=settings.dropout,
        use_dora=settings.method == "dora", target_modules=list(settings.target_modules), task_type="CAUSAL_LM",
        exclude_modules=list(settings.exclude_modules) or None, rank_pattern=dict(settings.rank_pattern),
        layers_to_transform=list(settings.layers_to_transform) or None, alpha_pattern=dict(settings.alpha_pattern),
        init_lora_weights=True if settings.init == "kaiming" else settings.init,
        modules_to_save=list(settings.modules_to_save) or None,
    )  # fmt: skip
    adapted = oracle_peft.get_peft_model(model, wanted).eval()
    if save_start is not None:
        adapted.peft_config["default"].init_lora_weights = True  # as PEFT's guide to the conversion has it
        adapted.save_pretrained(save_start)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad:
                assert "lora_" in name or "modules_to_save" in name
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return adapted
