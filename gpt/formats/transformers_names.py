"""What transformers calls the modules of the models that a GPT can be, by what we call them. No torch."""

LLAMA = {"embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
LLAMA_BLOCK = {
    "attention_norm": "input_layernorm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.out": "self_attn.o_proj",
    "attention.query_norm": "self_attn.q_norm",
    "attention.key_norm": "self_attn.k_norm",
    "feed_forward_norm": "post_attention_layernorm",
    "feed_forward.gate": "mlp.gate_proj",
    "feed_forward.up": "mlp.up_proj",
    "feed_forward.down": "mlp.down_proj",
}
"""Of Qwen3 as well, in blocks `model.layers.N`."""

GPT2 = {
    "embedding": "transformer.wte",
    "positions.embedding": "transformer.wpe",
    "norm": "transformer.ln_f",
    "head": "lm_head",
}
GPT2_NORMS = {"attention_norm": "ln_1", "feed_forward_norm": "ln_2"}
GPT2_MATRICES = {
    ("attention.query", "attention.key", "attention.value"): "attn.c_attn",
    ("attention.out",): "attn.c_proj",
    ("feed_forward.up",): "mlp.c_fc",
    ("feed_forward.down",): "mlp.c_proj",
}
"""In blocks `transformer.h.N`; a matrix lies the other way round there, and one is three of ours."""
