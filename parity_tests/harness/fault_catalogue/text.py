"""Faults of the text front end, the tokenizer and the fixed noise."""

from __future__ import annotations

from parity_tests.harness.fault_catalogue.base import Fault, constant, edit

TEXT, TOKENIZER, NOISE = "frontend.text", "frontend.tokenizer", "noise"
_SPLIT, _RULES = "frontend.text:split_paragraph", "frontend.text:_chinese_rules"
_WETEXT = "frontend.normalizer:WeTextNormalizer.__call__"
_GENERATOR, _FIXED = "noise:TorchGenerator", "noise:_FixedNoise"

FAULTS = (
    Fault(
        "pieces_of_81",
        "off by one",
        TEXT,
        edit(_SPLIT, "sentence) > token_max_n and", "sentence) > token_max_n + 1 and"),
    ),
    Fault("pieces_from_61", "off by one", TEXT, edit(_SPLIT, "> token_min_n", "> token_min_n + 1")),
    Fault(
        "short_rest_not_glued", "missing step", TEXT, edit(_SPLIT, "length(current) < merge_len", "length(current) < 0")
    ),
    Fault("english_measured_in_characters", "length", TEXT, edit(_SPLIT, "else len(tokenize(part))", "else len(part)")),
    Fault(
        "pieces_measured_sentence_by_sentence",
        "length",
        TEXT,
        edit(_SPLIT, "len(tokenize(part))", "sum(len(tokenize(one)) for one in split_sentences(part, breaks))"),
    ),
    Fault("no_final_stop", "missing step", TEXT, edit(_SPLIT, "text[-1] not in breaks", "not text")),
    Fault(
        "points_stay_in_chinese", "text rules", TEXT, edit(_RULES, 'text.replace(".", "。").replace', "text.replace")
    ),
    Fault(
        "trailing_comma_stays",
        "text rules",
        TEXT,
        edit(_RULES, '_TRAILING_COMMAS.sub("。", remove_bracket(text))', "remove_bracket(text)"),
    ),
    Fault("brackets_stay", "text rules", TEXT, edit("frontend.text:remove_bracket", '"[（）【】`]"', '"[【】`]"')),
    Fault(
        "closing_quote_opens_the_next_sentence",
        "text rules",
        TEXT,
        edit(
            "frontend.text:split_sentences",
            "if sentences and text[start : start + 1] in CLOSING_QUOTES",
            "if text[start : start + 1] in ()",
        ),
    ),
    Fault(
        "blanks_all_deleted",
        "text rules",
        TEXT,
        edit("frontend.text:replace_blank", 'if c != " " or keeps(i)', 'if c != " "'),
    ),
    Fault(
        "digits_one_by_one",
        "text rules",
        TEXT,
        edit("frontend.text:_number_words", "number_to_words(digits))", "number_to_words(digits, group=1))"),
    ),
    Fault(
        "instructions_are_normalised",
        "text rules",
        TEXT,
        edit("frontend.text:text_normalize", '"<|" in text and "|>" in text and', "False and"),
    ),
    Fault(
        "special_tokens_given_to_the_normaliser",
        "text rules",
        TEXT,
        edit(
            _WETEXT,
            'outside_tokens(lambda part: "".join(self._read(s, lang, _PARTS, unread) for s in stretches(part)), text)',
            "self._read(text, lang, _PARTS, unread)",
        ),
    ),
    Fault(
        "digits_of_special_tokens_spelled_out",
        "text rules",
        TEXT,
        edit("frontend.text:text_normalize", "outside_tokens(_english_rules, text)", "_english_rules(text)"),
    ),
    Fault(
        "one_spot_spoils_the_text",
        "text rules",
        TEXT,
        edit(_WETEXT, "lang, _PARTS, unread)", "lang, (), unread)"),
    ),
    Fault(
        "digits_alone_are_chinese",
        "text rules",
        TEXT,
        edit(_WETEXT, "if contains_chinese(text) else", "if contains_chinese(text) or text.isdigit() else"),
        "wetext 0.1.8",
    ),
    Fault(
        "kanji_are_english",
        "text rules",
        TEXT,
        edit(
            "frontend.normalizer:contains_chinese",
            "_CHINESE.search(text) is not None",
            'any("\\u4e01" <= c <= "\\u9fff" for c in text)',
        ),
    ),
    # tokenizer
    Fault(
        "text_not_composed",
        "token ids",
        TOKENIZER,
        edit("frontend.tokenizer:_build", "normalizers.NFC()", "normalizers.NFD()"),
    ),
    Fault(
        "special_tokens_one_later",
        "special ids",
        TOKENIZER,
        edit("frontend.tokenizer:CosyVoice3Tokenizer.__init__", "len(vocab) + i for", "len(vocab) + i + 1 for"),
    ),
    Fault(
        "stock_merges_accepted",
        "token ids",
        TOKENIZER,
        edit(
            "frontend.tokenizer:CosyVoice3Tokenizer.check_probe",
            "self.base_vocab_size != OFFICIAL_VOCAB_SIZE or",
            "True or",
        ),
    ),
    Fault(
        "numbers_in_threes",
        "token ids",
        TOKENIZER,
        constant(
            "frontend.tokenizer:PRETOKENIZE_REGEX",
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
            r"|\s+(?!\S)|\s+",
        ),
    ),
    Fault(
        "last_special_token_forgotten",
        "special ids",
        TOKENIZER,
        edit("frontend.tokenizer:_build", "for token in SPECIAL_TOKENS]", "for token in SPECIAL_TOKENS[:-1]]"),
    ),
    # noise
    Fault("noise_of_seed_1986", "noise law", NOISE, constant("noise:NOISE_SEED", 1986), "speech-swift 378"),
    Fault(
        "noise_of_23_bits",
        "noise law",
        NOISE,
        edit(f"{_GENERATOR}.uniform", "np.uint32(0xFFFFFF)", "np.uint32(0xFFFFFE)"),
    ),
    Fault(
        "noise_of_the_high_bits",
        "noise law",
        NOISE,
        edit(f"{_GENERATOR}.uniform", "self.words(n) & np.uint32(0xFFFFFF)", "self.words(n) >> np.uint32(8)"),
    ),
    Fault(
        "noise_one_word_late",
        "noise use",
        NOISE,
        edit("noise:_draws_between_noise_and_source", "+ width + 1", "+ width + 2"),
        "CosyVoice 406",
    ),
    Fault(
        "noise_without_the_pitch_network",
        "noise use",
        NOISE,
        edit("noise:_draws_between_noise_and_source", "+ first + others", "+ 0 * (first + others)"),
    ),
    Fault(
        "normals_in_pairs",
        "noise law",
        NOISE,
        edit(
            "noise:_box_muller",
            "uniforms.reshape(-1, 2, _GROUP // 2)",
            "uniforms.reshape(-1, _GROUP // 2, 2).swapaxes(1, 2)",
        ),
    ),
    Fault(
        "normals_sine_first",
        "order",
        NOISE,
        edit(
            "noise:_box_muller",
            "[radius * np.cos(angle), radius * np.sin(angle)]",
            "[radius * np.sin(angle), radius * np.cos(angle)]",
        ),
    ),
    Fault(
        "normals_without_new_tail",
        "noise use",
        NOISE,
        edit(
            f"{_GENERATOR}.normal",
            "x[-_GROUP:] = _box_muller(self.uniform(_GROUP))",
            "x[-_GROUP:] = _box_muller(x[-_GROUP:])",
        ),
    ),
    Fault(
        "exponentials_low_word_first",
        "noise law",
        NOISE,
        edit(
            f"{_GENERATOR}._uniform53",
            "pairs[:, 0] << np.uint64(32) | pairs[:, 1]",
            "pairs[:, 1] << np.uint64(32) | pairs[:, 0]",
        ),
    ),
    Fault(
        "exponentials_of_one_word",
        "noise use",
        NOISE,
        edit(
            f"{_GENERATOR}.exponential",
            "-np.log1p(-self._uniform53(n))",
            "-np.log1p(-self.uniform(n).astype(np.float64))",
        ),
    ),
    Fault(
        "flow_noise_by_frames",
        "order",
        NOISE,
        edit(
            "noise:rand_noise",
            "noise.reshape(1, _FLOW.output_size, MAX_FRAMES)",
            "noise.reshape(1, MAX_FRAMES, _FLOW.output_size).swapaxes(1, 2)",
        ),
    ),
    Fault(
        "source_noise_restarts_with_each_request",
        "state",
        NOISE,
        edit("noise:sine_waves", "_FIXED.sines[offset : offset + samples]", "_FIXED.sines[:samples]"),
    ),
    Fault("fundamental_starts_anywhere", "missing step", NOISE, edit(f"{_FIXED}.open_source", "ini[:, 0] = 0", "pass")),
)
