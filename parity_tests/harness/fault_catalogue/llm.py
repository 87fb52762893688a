"""Faults of the language model and its sampler."""

from __future__ import annotations

from parity_tests.harness.fault_catalogue.base import Fault, edit

NORM, ROTARY, ATTENTION, MODEL = (
    f"llm.qwen2.{name}" for name in ("Qwen2RMSNorm", "Qwen2RotaryEmbedding", "Qwen2Attention", "Qwen2Model")
)
LM, SAMPLING = "llm.speech_lm.CosyVoice3LM", "llm.sampling"
_NORM, _ROTARY, _ATTENTION, _MODEL = (f"llm.qwen2:{path.split('.')[-1]}" for path in (NORM, ROTARY, ATTENTION, MODEL))
_LM = "llm.speech_lm:CosyVoice3LM"
_ROTATE = "llm.qwen2:apply_rotary_pos_emb"
_NUCLEUS, _BEST, _RAS = "llm.sampling:nucleus", "llm.sampling:_best", "llm.sampling:ras_sampling"

FAULTS = (
    Fault("rms_norm_eps_1e-5", "epsilon", NORM, edit(f"{_NORM}.__init__", "self.eps = eps", "self.eps = 10 * eps")),
    Fault(
        "rms_norm_in_half_precision",
        "precision",
        NORM,
        edit(f"{_NORM}.__call__", "rms_norm(x,", "rms_norm(x.astype(mx.float16),"),
        "mobius 42",
    ),
    Fault("qwen2_rope_theta_1e4", "constant", ROTARY, edit(f"{_ROTARY}.__init__", "power(theta,", "power(1e4,")),
    Fault(
        "qwen2_rope_theta_off_by_a_thousandth",
        "constant",
        ROTARY,
        edit(f"{_ROTARY}.__init__", "power(theta,", "power(theta * 1.001,"),
    ),
    Fault(
        "qwen2_rope_starts_at_one",
        "off by one",
        ROTARY,
        edit(f"{_ROTARY}._build", "arange(length)", "arange(1, length + 1)"),
        equivalent="attention sees how far apart two positions are: each is one later, so that none moves",
    ),
    Fault(
        "qwen2_rope_interleaved",
        "rotary layout",
        ATTENTION,
        edit(
            _ROTATE,
            "mx.concatenate((-second, first), axis=-1)",
            "mx.stack((-x[..., 1::2], x[..., ::2]), axis=-1).flatten(-2)",
        ),
        "transformers 47328",
    ),
    Fault("qwen2_rope_turns_back", "sign", ATTENTION, edit(_ROTATE, "(-second, first)", "(second, -first)")),
    Fault(
        "qwen2_rope_on_queries_only",
        "rotary layout",
        ATTENTION,
        edit(f"{_ATTENTION}.__call__", "apply_rotary_pos_emb(k, rope)", "k"),
    ),
    Fault(
        "qwen2_scale_of_the_model_width",
        "normalisation",
        ATTENTION,
        edit(f"{_ATTENTION}._attend", "scale=self.head_dim**-0.5", "scale=q.shape[1] ** -0.5"),
    ),
    Fault(
        "qwen2_without_causal_mask",
        "mask",
        ATTENTION,
        edit(f"{_ATTENTION}.__call__", '"causal" if length > 1 else None', "None"),
    ),
    Fault(
        "qwen2_mask_ignores_the_cache",
        "cache",
        MODEL,
        edit(
            f"{_ATTENTION}.__call__",
            '"causal" if length > 1 else None',
            "mx.arange(length)[:, None] >= mx.arange(k.shape[2]) if length > 1 else None",
        ),
        "QwenAudio/CosyVoice 1886",
    ),
    Fault(
        "qwen2_positions_ignore_the_cache",
        "cache",
        MODEL,
        edit(f"{_MODEL}.__call__", "cache[0].offset if cache else 0", "0"),
        "QwenAudio/CosyVoice 1446",
    ),
    Fault(
        "qwen2_cache_lost_when_it_grows",
        "cache",
        MODEL,
        edit(
            "llm.qwen2:KVCache._written",
            "room if buffer is None else",
            "mx.zeros((b, k, grown, d), new.dtype) if start else room if buffer is None else",
        ),
    ),
    Fault(
        "qwen2_key_heads_interleaved",
        "heads",
        ATTENTION,
        edit(
            f"{_ATTENTION}._attend",
            "scaled_dot_product_attention(q, k, v,",
            "scaled_dot_product_attention(q, *(mx.tile(t, (1, q.shape[1] // t.shape[1], 1, 1)) for t in (k, v)),",
        ),
    ),
    Fault(
        "qwen2_gate_and_up_swapped",
        "swapped",
        "llm.qwen2.Qwen2MLP",
        edit(
            "llm.qwen2:Qwen2MLP.__call__",
            "self.act_fn(self.gate_proj(x)) * self.up_proj(x)",
            "self.act_fn(self.up_proj(x)) * self.gate_proj(x)",
        ),
    ),
    Fault(
        "qwen2_gelu_for_silu",
        "activation",
        "llm.qwen2.Qwen2MLP",
        edit("llm.qwen2:Qwen2MLP.__call__", "self.act_fn(", "nn.gelu("),
    ),
    Fault(
        "fast_silu_of_twice_the_argument",
        "activation",
        "llm.qwen2.Qwen2MLP",
        edit("fast.arithmetic:silu", "-LOG2_E", "-2 * LOG2_E"),
    ),
    Fault(
        "qwen2_second_norm_is_the_first",
        "swapped",
        "llm.qwen2.Qwen2DecoderLayer",
        edit("llm.qwen2:Qwen2DecoderLayer.__call__", "self.post_attention_layernorm(x)", "self.input_layernorm(x)"),
    ),
    Fault(
        "qwen2_without_final_norm", "missing step", MODEL, edit(f"{_MODEL}.__call__", "return self.norm(x)", "return x")
    ),
    Fault(
        "scores_are_logits",
        "normalisation",
        f"{LM}.scores",
        edit(f"{_LM}.scores", "logits - mx.logsumexp(logits, axis=-1, keepdims=True)", "logits"),
    ),
    Fault(
        "scores_in_half_precision",
        "precision",
        f"{LM}.scores",
        edit(f"{_LM}.scores", ".astype(mx.float32)", ".astype(mx.float16).astype(mx.float32)"),
        "sglang-omni 1713",
    ),
    Fault(
        "task_embedding_is_the_fill_token",
        "special ids",
        f"{LM}.prepare_input",
        edit(f"{_LM}.prepare_input", "self.config.task_id", "self.config.fill_token"),
        "mair-hub 35",
    ),
    Fault(
        "text_before_prompt_text",
        "order",
        f"{LM}.prepare_input",
        edit(
            f"{_LM}.prepare_input",
            "            instruction,\n            words,",
            "            words,\n            instruction,",
        ),
        "speech-swift 378",
    ),
    Fault(
        "prompt_speech_left_out",
        "missing step",
        f"{LM}.prepare_input",
        edit(
            f"{_LM}.prepare_input",
            "self.embed_speech(prompt_speech_token)",
            "self.embed_speech(prompt_speech_token)[:, :0]",
        ),
    ),
    Fault(
        "end_token_of_cosyvoice_2",
        "special ids",
        LM,
        edit("config:LLMConfig.eos", "self.speech_token_size + 1", "self.speech_token_size"),
        "mair-hub 35",
    ),
    Fault(
        "only_the_end_token_stops",
        "special ids",
        LM,
        edit(f"{_LM}.inference", "token >= self.config.speech_token_size", "token == self.config.eos"),
        "vllm-omni 2486",
    ),
    Fault(
        "minimum_length_masks_the_end",
        "special ids",
        LM,
        edit(f"{_LM}.sampling_ids", "scores[self.config.sos] = -np.inf", "scores[self.config.eos] = -np.inf"),
        "CosyVoice PR 1916",
    ),
    Fault("minimum_length_one_longer", "off by one", LM, edit(f"{_LM}.inference", "i < min_len", "i <= min_len")),
    Fault(
        "maximum_length_counts_the_prompt",
        "length",
        LM,
        edit(
            f"{_LM}.inference",
            "max_len = int(text.shape[1] *",
            "max_len = int((text.shape[1] + prompt_text.shape[1]) *",
        ),
    ),
    Fault(
        "maximum_length_one_longer", "off by one", LM, edit(f"{_LM}.inference", "range(max_len)", "range(max_len + 1)")
    ),
    Fault(
        "bistream_round_one_longer",
        "off by one",
        LM,
        edit(
            f"{_LM}.inference_bistream", "next_fill = len(tokens) + n_speech", "next_fill = len(tokens) + n_speech + 1"
        ),
    ),
    Fault(
        "bistream_feeds_the_fill_token",
        "order",
        LM,
        edit(
            f"{_LM}.inference_bistream",
            "next_fill = len(tokens) + n_speech",
            "next_fill, lm_input = len(tokens) + n_speech, self._special(token)",
        ),
    ),
    # sampling
    Fault(
        "top_p_leaves_out_the_token_that_crosses",
        "off by one",
        SAMPLING,
        edit(
            _NUCLEUS,
            "kept = 1 + np.count_nonzero(before < np.float32(top_p))",
            "kept = max(1, np.count_nonzero(before < np.float32(top_p)))",
        ),
    ),
    Fault("top_p_0.79", "constant", SAMPLING, edit(_NUCLEUS, "np.float32(top_p)", "np.float32(top_p - 0.01)")),
    Fault(
        "partition_without_ties",
        "order",
        SAMPLING,
        edit(
            _BEST,
            "np.flatnonzero(probabilities >= np.partition(probabilities, -count)[-count])",
            "np.argpartition(probabilities, -count)[-count:]",
        ),
    ),
    Fault("top_k_24", "off by one", SAMPLING, edit(_NUCLEUS, "min(top_k, len", "min(top_k - 1, len")),
    Fault(
        "equal_scores_in_reverse_order",
        "order",
        SAMPLING,
        edit(
            _BEST,
            'np.argsort(-probabilities[ids], kind="stable")',
            'np.argsort(probabilities[ids], kind="stable")[::-1]',
        ),
    ),
    Fault("repetition_window_9", "off by one", SAMPLING, edit(_RAS, "-config.win_size :", "-config.win_size + 1 :")),
    Fault("repetition_needs_two", "constant", SAMPLING, edit(_RAS, ">= config.win_size", "> config.win_size")),
    Fault(
        "redraw_from_the_nucleus",
        "missing step",
        SAMPLING,
        edit(
            _RAS, "multinomial(_softmax(scores), draws)", "nucleus_sampling(scores, draws, config.top_p, config.top_k)"
        ),
    ),
    Fault(
        "redraw_may_repeat",
        "missing step",
        SAMPLING,
        edit(_RAS, "scores[token] = -np.inf", "pass"),
    ),
    Fault(
        "forbidden_token_not_in_place",
        "state",
        SAMPLING,
        edit(_RAS, "scores[token] = -np.inf", "scores = np.where(np.arange(len(scores)) == token, -np.inf, scores)"),
    ),
    Fault(
        "draw_by_cumulative_sum",
        "noise law",
        SAMPLING,
        edit(
            "llm.sampling:multinomial",
            "int((probabilities / draws.exponential(len(probabilities))).argmax())",
            "int(np.searchsorted(np.cumsum(probabilities) / probabilities.sum(), np.exp(-draws.exponential(1)[0])))",
        ),
    ),
)
