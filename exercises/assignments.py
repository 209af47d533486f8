"""What the course's exercises need to be graded: points, hidden tests, and a usual mistake for each.

Everything else (the exercise's text, its starting code, its solution, its visible test) stands in the course's notebook
and is taken from there by `make.py`. To add a notebook's exercises, add an `Assignment` here; README.md says how.

In `hidden`, names are those of the graded notebook: what `setup` defines, the learner's function, `check` (the
notebook's checks), `assert_right` and `agrees` (of `teachllama.check.core`). Values differ from the visible ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from inspect import cleandoc


@dataclass(frozen=True)
class Exercise:
    """How one exercise of a notebook is graded; in the notebook's order."""

    hidden: str  # code: the hidden tests
    mistake: tuple[str, str]  # the name by which the check knows it, and an answer that makes it
    points: tuple[int, int]  # for the visible test, for the hidden ones
    # Where the notebook says `answer = ...`: what to write here, so that other values can be tried on it.
    function: str = ""
    given: str = ""  # code that stands before the answer, where the notebook got it from an earlier cell
    note: str = ""  # follows the exercise's text
    finish: str = ""  # code that follows the notebook's solution
    replace: Mapping[str, str] = field(default_factory=dict)  # in text and code taken from the notebook


@dataclass(frozen=True)
class Assignment:
    """The exercises of one notebook."""

    notebook: str  # its file name, without .ipynb; the assignment's name, too
    setup: str  # the first cell
    exercises: tuple[Exercise, ...]

    @property
    def points(self) -> int:
        return sum(sum(e.points) for e in self.exercises)


A_TRANSFORMER = Assignment(
    "00_a_transformer",
    cleandoc("""
        from types import SimpleNamespace

        import numpy as np

        from teachllama.check import notebook00 as check
        from teachllama.check.core import assert_right
    """),
    (
        Exercise(
            function="weights(tiny)",
            points=(2, 2),
            hidden=cleandoc("""
                tied = dict(n_layers=30, dim=576, hidden_dim=1536, n_heads=9, n_kv_heads=3, head_dim=64,
                            vocab_size=49_152, tied=True)
                wide_heads = dict(n_layers=5, dim=300, hidden_dim=700, n_heads=6, n_kv_heads=2, head_dim=80,
                                  vocab_size=1000, tied=False)
                assert_right(check.weights_of_a_llama(weights(tied), tied))
                assert_right(check.weights_of_a_llama(weights(wide_heads), wide_heads))
            """),
            mistake=(
                "query_heads",
                cleandoc("""
                    def weights(tiny):
                        s = SimpleNamespace(**tiny)
                        layer = 4 * s.dim * s.n_heads * s.head_dim + 3 * s.dim * s.hidden_dim + 2 * s.dim
                        return (1 if s.tied else 2) * s.vocab_size * s.dim + s.n_layers * layer + s.dim
                """),
            ),
        ),
        Exercise(
            points=(2, 1),
            hidden=cleandoc("""
                from teachllama import ops

                rng = np.random.default_rng(5)
                cases = [(rng.normal(size=(n, d)), rng.normal(size=d), eps)
                         for n, d, eps in ((1, 4, 1e-5), (3, 7, 0.1), (5, 16, 1e-6))]
                assert_right(agrees(my_rmsnorm, ops.rmsnorm, [*cases, (np.zeros((2, 5)), np.ones(5), 1e-6)]))
            """),
            mistake=(
                "mean_subtracted",
                cleandoc("""
                    def my_rmsnorm(x, weight, eps):
                        x = x - x.mean(axis=-1, keepdims=True)
                        return x * weight / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps)
                """),
            ),
        ),
        Exercise(
            points=(2, 1),
            hidden=cleandoc("""
                assert_right(agrees(my_hidden, lambda n, n_past: ~np.tri(n, n_past + n, n_past, dtype=bool),
                                    [(4, 0), (3, 7), (1, 1), (6, 2)]))
            """),
            mistake=(
                "past",
                cleandoc("""
                    def my_hidden(n, n_past):
                        return np.arange(n_past + n)[None, :] > np.arange(n)[:, None]
                """),
            ),
        ),
        Exercise(
            points=(3, 1),
            hidden=cleandoc("""
                from teachllama import ops

                def engine(x, positions, base):
                    angles = ops.rope_angles(positions, x.shape[-1], base, 1.0, None)
                    return ops.rope(x[:, None].astype(np.float32), angles, "interleaved")[:, 0]

                rng = np.random.default_rng(6)
                cases = [(rng.normal(size=(n, d)), start + np.arange(n), base)
                         for n, d, start, base in ((1, 2, 5, 10.0), (4, 8, 3, 500_000.0), (3, 6, 100, 10_000.0))]
                assert_right(agrees(my_rope, engine, cases))
            """),
            mistake=(
                "halves",
                cleandoc("""
                    def my_rope(x, positions, base):
                        d = x.shape[-1]
                        angles = positions[:, None] * base ** (-np.arange(0, d, 2) / d)
                        a, b = x[:, : d // 2], x[:, d // 2 :]
                        cos, sin = np.cos(angles), np.sin(angles)
                        return np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)
                """),
            ),
        ),
    ),
)

HELLO_GENERATION = Assignment(
    "01_hello_generation",
    cleandoc("""
        import os

        import teachllama as tl
        from teachllama.check import notebook01 as check
        from teachllama.check.core import assert_right

        model = tl.load_model(os.environ.get("TEACHLLAMA_MODEL", "smollm2-135m"))
    """),
    (
        Exercise(
            function="characters(model, poem)",
            points=(1, 1),
            hidden=cleandoc("""
                for text in ("Snow fell all night, and nobody heard it.", "1, 2, 3, 4, 5!", "Ça alors, été 🌞"):
                    assert_right(check.characters_per_token(characters(model, text), model, text))
            """),
            mistake=(
                "inverted",
                cleandoc("""
                    def characters(model, poem):
                        return len(model.encode(poem)) / len(poem)
                """),
            ),
        ),
        Exercise(
            function="bits(file)",
            replace={"file.close()": ""},
            points=(1, 1),
            hidden=cleandoc("""
                from types import SimpleNamespace as Made

                for sizes in (((18_000, 32_000), (4_096, 1_024)), ((500, 2_000), (700, 800), (90, 45))):
                    tensors = {str(i): Made(nbytes=b, n_elements=n) for i, (b, n) in enumerate(sizes)}
                    file = Made(tensors=tensors, nbytes=1_000 + sum(b for b, _ in sizes))
                    assert_right(check.bits_per_weight(bits(file), file))
            """),
            mistake=(
                "mean_of_means",
                cleandoc("""
                    def bits(file):
                        each = [8 * t.nbytes / t.n_elements for t in file.tensors.values()]
                        return sum(each) / len(each)
                """),
            ),
        ),
        Exercise(
            points=(3, 2),
            hidden=cleandoc("""
                ranks = {"banana": {("a", "n"): 0, ("an", "a"): 1, ("b", "an"): 2},
                         "mississippi": {("s", "s"): 0, ("i", "ss"): 1, ("p", "p"): 2, ("m", "i"): 3},
                         "lowlow": {("l", "o"): 2, ("o", "w"): 0, ("l", "ow"): 1}, "q": {}}
                joined = {"banana": ["ban", "ana"], "mississippi": ["m", "iss", "iss", "i", "pp", "i"],
                          "lowlow": ["low", "low"], "q": ["q"]}
                assert_right(agrees(join, lambda symbols, _: joined["".join(symbols)],
                                    [(list(word), ranks[word]) for word in joined]))
            """),
            mistake=(
                "left_to_right",
                cleandoc("""
                    def join(symbols, ranks):
                        symbols, i = list(symbols), 0
                        while i < len(symbols) - 1:
                            if (symbols[i], symbols[i + 1]) in ranks:
                                symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
                                i = 0
                            else:
                                i += 1
                        return symbols
                """),
            ),
        ),
        Exercise(
            note="Mend it where it stands.",
            points=(2, 1),
            hidden=cleandoc("""
                before, after = check.turn_marks(model)

                def apart(text):
                    start, end = (model.encode(mark, parse_special=True) for mark in (before, after))
                    return start + model.encode(text) + end

                assert_right(agrees(lambda text: turn(model, before, text, after), apart,
                                    [("Ça va?",), (after + before,), (f"one{after}two",), (" 3 spaces   ",)]))
            """),
            mistake=(
                "text_parsed",
                cleandoc("""
                    def turn(model, before, text, after):
                        parts = [model.encode(part, parse_special=True) for part in (before, text, after)]
                        return parts[0] + parts[1] + parts[2]
                """),
            ),
        ),
    ),
)

CHAT_AND_TEMPLATES = Assignment(
    "02_chat_and_templates",
    cleandoc("""
        import os

        import teachllama as tl
        from teachllama.check import notebook02 as check
        from teachllama.check.core import assert_right

        model = tl.load_model(os.environ.get("TEACHLLAMA_MODEL", "smollm2-135m"))
        model.config.seq_len = min(model.config.seq_len, 512)
        TEMPLATE = None if model.chat_template else "gemma" if model.config.arch == "gemma3" else "chatml"
    """),
    (
        Exercise(
            function="new_tokens(talk, text)",
            given=cleandoc("""
                talk = tl.Chat(model.create_session(), template=TEMPLATE)
                print(talk.ask("What is the capital of France?", max_new_tokens=16))
            """),
            points=(2, 1),
            hidden=cleandoc("""
                new = tl.Chat(model.create_session(), template=TEMPLATE)
                for chat, words in ((talk, "And of Italy, please?"), (talk, "Thanks!"), (new, "Tell me a story.")):
                    assert_right(check.evaluated(new_tokens(chat, words), chat, words))
                new.session.close()
            """),
            mistake=(
                "everything",
                cleandoc("""
                    def new_tokens(talk, text):
                        return len(talk.encode([*talk.history, {"role": "user", "content": text}]))
                """),
            ),
        ),
        Exercise(
            note="Mend it where it stands.",
            points=(2, 1),
            hidden=cleandoc("""
                def by_join(messages, add_generation_prompt):
                    turns = ["{}\\n{}<|im_end|>\\n".format(m["role"], m["content"]) for m in messages]
                    start = "<|im_start|>"
                    return start.join(["", *turns]) + (start + "assistant\\n") * add_generation_prompt

                roles = ("system", "user", "assistant", "user")
                talks = [[], [dict(role="user", content=" A\\n\\nB ")],
                         [dict(role=role, content=f"{role} speaks") for role in roles]]
                assert_right(agrees(chatml, by_join, [(talk, reply) for talk in talks for reply in (True, False)]))
            """),
            mistake=(
                "no_newline_after_end",
                cleandoc("""
                    def chatml(messages, add_generation_prompt):
                        text = "".join(f"<|im_start|>{m['role']}\\n{m['content']}<|im_end|>" for m in messages)
                        return text + ("<|im_start|>assistant\\n" if add_generation_prompt else "")
                """),
            ),
        ),
        Exercise(
            note="Mend it where it stands.",
            points=(3, 1),
            hidden=cleandoc("""
                def by_trying(held, wanted):
                    keep = max(n for n in range(len(wanted)) if held[:n] == wanted[:n])
                    return [keep, *wanted[keep:]]

                cases = [([5, 6, 7], [5, 6, 7]), ([5, 6, 7, 8], [5, 6, 9, 8]), ([], [1]), ([4, 4], [4, 4, 4]),
                         ([1, 2, 3, 4, 5, 6], [1, 2]), ([9, 1], [8, 1, 2])]
                assert_right(agrees(lambda held, wanted: [reuse(held, wanted)[0], *reuse(held, wanted)[1]],
                                    by_trying, cases))
            """),
            mistake=(
                "nothing_left",
                cleandoc("""
                    def reuse(held, wanted):
                        keep = 0
                        while keep < min(len(held), len(wanted)) and held[keep] == wanted[keep]:
                            keep += 1
                        return keep, wanted[keep:]
                """),
            ),
        ),
        Exercise(
            note="Mend it where it stands.",
            points=(3, 1),
            hidden=cleandoc("""
                def by_place(messages, length, budget):
                    first = int(messages[0]["role"] == "system")
                    ends = [messages[:first] + messages[i:] for i in range(first, len(messages) + 2, 2)]
                    return next(kept for kept in ends if length(kept) <= budget)

                def characters(messages):
                    return sum(len(m["content"]) for m in messages)

                turns = [dict(role=role, content=f"{role} {i} " + "x" * i)
                         for i in range(5) for role in ("user", "assistant")]
                system = [dict(role="system", content="Short answers.")]
                cases = [(start + turns, characters, budget) for start in ([], system) for budget in (31, 62, 70, 500)]
                assert_right(agrees(trim, by_place, cases))
            """),
            mistake=(
                "half_a_turn",
                cleandoc("""
                    def trim(messages, length, budget):
                        system = [m for m in messages[:1] if m["role"] == "system"]
                        turns = messages[len(system) :]
                        while turns and length(system + turns) > budget:
                            turns = turns[1:]
                        return system + turns
                """),
            ),
        ),
    ),
)

SAMPLING = Assignment(
    "03_sampling",
    cleandoc("""
        import numpy as np

        from teachllama.check import notebook03 as check
        from teachllama.check.core import assert_right


        def softmax(logits):
            e = np.exp(logits.astype(np.float64) - logits.max())
            return e / e.sum()
    """),
    (
        Exercise(
            function="left(logits)",
            given="logits = np.random.default_rng(3).normal(0, 2.5, 1000)",
            note="Here `logits` are a thousand made-up ones, so that no model is needed.",
            replace={"open_": "logits"},
            points=(1, 1),
            hidden=cleandoc("""
                for seed, spread in ((11, 2.0), (12, 4.0)):
                    others = np.random.default_rng(seed).normal(0, spread, 3000)
                    assert_right(check.min_p_count(left(others), others, min_p=0.2, temperature=2.0))
            """),
            mistake=(
                "temperature_first",
                cleandoc("""
                    def left(logits):
                        p = softmax(logits / 2)
                        return np.count_nonzero(p >= 0.2 * p.max())
                """),
            ),
        ),
        Exercise(
            points=(2, 1),
            hidden=cleandoc("""
                rng = np.random.default_rng(4)
                cases = [(rng.normal(0, spread, 50), t)
                         for spread, t in ((1, 0.3), (5, 1.7), (3000, 0.9), (2, 10.0))]
                assert_right(agrees(my_temperature, lambda logits, t: softmax(logits / t), cases))
            """),
            mistake=(
                "multiplied",
                cleandoc("""
                    def my_temperature(logits, temperature):
                        return softmax(logits * temperature)
                """),
            ),
        ),
        Exercise(
            points=(2, 1),
            hidden=cleandoc("""
                import teachllama as tl
                from teachllama import sampling

                def engine(logits, seen, penalty):
                    return sampling.penalize(logits, seen, tl.SamplingParams(repeat_penalty=penalty, penalty_last_n=-1))

                rng = np.random.default_rng(8)
                cases = [(rng.normal(0, 3, 20), rng.integers(0, 20, n).tolist(), penalty)
                         for n, penalty in ((3, 1.1), (40, 1.5), (0, 2.0))]
                assert_right(agrees(my_repeat_penalty, engine, cases))
            """),
            mistake=(
                "negative_logits",
                cleandoc("""
                    def my_repeat_penalty(logits, seen, penalty):
                        out = logits.copy()
                        for token in set(seen):
                            out[token] = out[token] / penalty
                        return out
                """),
            ),
        ),
        Exercise(
            points=(3, 1),
            hidden=cleandoc("""
                def fewest(probabilities, p):
                    order = np.argsort(-probabilities)
                    return np.sort(order[: np.searchsorted(np.cumsum(probabilities[order]), p) + 1])

                rng = np.random.default_rng(9)
                cases = [(softmax(rng.normal(0, spread, 40)), p)
                         for spread, p in ((1, 0.9), (3, 0.6), (6, 0.3), (0.1, 0.99))]
                assert_right(agrees(lambda probabilities, p: sorted(my_top_p(probabilities, p)), fewest, cases))
            """),
            mistake=(
                "crossing_token",
                cleandoc("""
                    def my_top_p(probabilities, p):
                        order = np.argsort(-probabilities)
                        return order[np.cumsum(probabilities[order]) <= p]
                """),
            ),
        ),
    ),
)

SESSIONS_AND_MEMORY = Assignment(
    "04_sessions_and_memory",
    cleandoc("""
        import os

        import teachllama as tl
        from teachllama import check, memory, show
        from teachllama.check.core import assert_right

        model = tl.load_model(os.environ.get("TEACHLLAMA_MODEL", "smollm2-135m"))
        model.config.seq_len = min(model.config.seq_len, 768)
        with model.create_session(seq_len=8) as session:
            session.eval([1])  # kernels may be compiled now, and say so: in a graded cell that would count as an error
    """),
    (
        Exercise(
            function="cache_bytes(shape, seq_len)",
            points=(2, 1),
            hidden=cleandoc("""
                for name, n in (("SmolLM2 135M", 1000), ("Gemma 3 4B", 3000), ("Llama 3.1 8B", 8192)):
                    shape = show.SHAPES[name]
                    assert_right(check.kv_bytes(cache_bytes(shape, n), shape, n, "f16"))
            """),
            mistake=(
                "sliding_window",
                cleandoc("""
                    def cache_bytes(shape, seq_len):
                        layer = shape.layout.layers[0]
                        numbers = layer.n_kv_heads * (layer.key_length + layer.value_length)
                        return shape.get("block_count") * seq_len * numbers * 2
                """),
            ),
        ),
        Exercise(
            function="sessions(model_nbytes, cache_nbytes)",
            given="model_nbytes, cache_nbytes = 538_060_032, 35_389_440  # SmolLM2 in float32; 768 positions",
            replace={"model.nbytes": "model_nbytes", "ONE_CACHE": "cache_nbytes"},
            points=(1, 1),
            hidden=cleandoc("""
                for model_bytes, cache_bytes_each in ((96_580_224, 47_185_920), (1_072_000_000, 94_371_840)):
                    found = sessions(model_bytes, cache_bytes_each)
                    assert_right(check.sessions_that_fit(found, model_bytes, cache_bytes_each, memory=2_000_000_000))
            """),
            mistake=(
                "forgot_weights",
                cleandoc("""
                    def sessions(model_nbytes, cache_nbytes):
                        return 2_000_000_000 // cache_nbytes
                """),
            ),
        ),
        Exercise(
            note="Mend them where they stand.",
            finish="calculator_a = calculator_b = calculator_c = calculator_d = mended",
            points=(2, 1),
            hidden=cleandoc("""
                def to_the_byte(m):
                    a_position = m["n_kv_heads"] * (m["key_length"] + m["value_length"]) * m["bytes_per_number"]
                    return m["n_layers"] * m["seq_len"] * a_position

                shapes = [dict(n_layers=7, seq_len=100, n_heads=12, n_kv_heads=4, dim=600, key_length=96,
                               value_length=80, bytes_per_number=4),
                          dict(n_layers=64, seq_len=5000, n_heads=40, n_kv_heads=8, dim=5120, key_length=128,
                               value_length=128, bytes_per_number=2)]
                for calculator in (calculator_a, calculator_b, calculator_c, calculator_d):
                    assert_right(agrees(calculator, to_the_byte, [(shape,) for shape in shapes]))
            """),
            mistake=(
                "no_v",
                cleandoc("""
                    def calculator_a(m):
                        numbers = m["n_kv_heads"] * (m["key_length"] + m["value_length"])
                        return m["n_layers"] * m["seq_len"] * numbers * m["bytes_per_number"]


                    def calculator_b(m):
                        return calculator_a(m)


                    def calculator_c(m):
                        numbers = m["n_kv_heads"] * m["key_length"]
                        return m["n_layers"] * m["seq_len"] * numbers * m["bytes_per_number"]


                    def calculator_d(m):
                        return calculator_a(m)
                """),
            ),
        ),
        Exercise(
            points=(4, 1),
            hidden=cleandoc("""
                def yours(prompt, stop, n):
                    with model.create_session(seq_len=64) as session:
                        return generate_until(session, model.encode(prompt, add_special=True), stop, n)

                def engine(prompt, stop, n):
                    with model.create_session(seq_len=64) as session:
                        ids = model.encode(prompt, add_special=True)
                        return "".join(t.piece for t in session.generate(ids, max_new_tokens=n)).split(stop)[0]

                cases = [("The sea was", ".", 12), ("One, two, three,", "six", 16), ("My name is", "###", 5)]
                assert_right(agrees(yours, engine, cases, seconds=30))
            """),
            mistake=(
                "last_piece",
                cleandoc("""
                    def generate_until(session, prompt_ids, stop, max_new_tokens):
                        session.eval(prompt_ids)
                        ids = []
                        while len(ids) < max_new_tokens:
                            token = session.sample()
                            if token in session.model.tokenizer.eog_ids or session.model.piece(token) == stop:
                                break
                            ids.append(token)
                            session.eval([token])
                        return session.model.decode(ids)
                """),
            ),
        ),
        Exercise(
            points=(3, 1),
            hidden=cleandoc("""
                assert_right(check.leak_released(puzzle))
                with model.create_session(seq_len=16) as another:  # the model was not closed on the way
                    another.eval(model.encode("Still here"))
            """),
            mistake=(
                "name_only",
                cleandoc("""
                    puzzle = check.leak_puzzle(model)
                    session, stories, picture, on_token = puzzle
                    del session
                """),
            ),
        ),
    ),
)

PERFORMANCE = Assignment(
    "05_performance",
    cleandoc("""
        import statistics

        import numpy as np

        from teachllama.check import notebook05 as check
        from teachllama.check.core import assert_right
    """),
    (
        Exercise(
            function="at_most(question)",
            replace={"/ 256 * 144": "/ question.block_weights * question.block_nbytes"},
            points=(1, 1),
            hidden=cleandoc("""
                for weights, block, nbytes, bandwidth in ((1.1e9, 32, 34, 20e9), (70.6e9, 256, 210, 800e9)):
                    other = check.Question(weights, block, nbytes, bandwidth)
                    assert_right(check.decode_speed(at_most(other), other))
            """),
            mistake=(
                "no_scales",
                cleandoc("""
                    def at_most(question):
                        return question.bandwidth / (question.n_weights * 4 / 8)
                """),
            ),
        ),
        Exercise(
            points=(2, 1),
            hidden=cleandoc("""
                def by_counting(bandwidth, flops, bytes_per_weight):
                    n = 1
                    while 2 * n / flops < bytes_per_weight / bandwidth:
                        n += 1
                    return n

                cases = [(20e9, 90e9, 0.5625), (64e9, 512e9, 2.0), (3e12, 400e12, 1.0625), (50e9, 70e9, 1.0)]
                assert_right(agrees(tokens_at_the_knee, by_counting, cases))
            """),
            mistake=(
                "one_operation",
                cleandoc("""
                    def tokens_at_the_knee(bandwidth, flops, bytes_per_weight):
                        return int(np.ceil(flops / bandwidth * bytes_per_weight))
                """),
            ),
        ),
        Exercise(
            points=(1, 1),
            hidden=cleandoc("""
                def by_times(bandwidth, weights_nbytes, position_nbytes, n_past):
                    return 1 / (weights_nbytes / bandwidth + position_nbytes / bandwidth * n_past)

                cases = [(30e9, 4e8, 92_160, 2048), (100e9, 1e9, 18_432, 0), (400e9, 16e9, 131_072, 131_072)]
                assert_right(agrees(predicted_tps, by_times, cases))
            """),
            mistake=(
                "weights_only",
                cleandoc("""
                    def predicted_tps(bandwidth, weights_nbytes, position_nbytes, n_past):
                        return bandwidth / weights_nbytes
                """),
            ),
        ),
        Exercise(
            points=(3, 1),
            hidden=cleandoc("""
                def by_logaddexp(reference_logits, logits):
                    p, q = (l - np.logaddexp.reduce(l) for l in (reference_logits, logits))
                    return np.dot(np.exp(p), p - q)

                rng = np.random.default_rng(11)
                cases = [(rng.normal(0, spread, 30) + shift, rng.normal(0, spread, 30))
                         for spread, shift in ((1, 0), (4, 900), (2, -3000))]
                assert_right(agrees(kl_divergence, by_logaddexp, cases))
            """),
            mistake=(
                "reversed",
                cleandoc("""
                    def kl_divergence(reference_logits, logits):
                        p, q = (l - np.logaddexp.reduce(l) for l in (reference_logits, logits))
                        return (np.exp(q) * (q - p)).sum()
                """),
            ),
        ),
        Exercise(
            points=(3, 1),
            hidden=cleandoc("""
                def measured(ours, theirs, hiccup, pairs):
                    world = check.World(ours, theirs, (1.0, 1.1, 1.3, 1.6, 2.0), hiccup)
                    return times_faster(world.ours, world.theirs, world.clock, pairs)

                cases = [(0.03, 0.12, 4, 5), (0.2, 0.1, 7, 7), (0.5, 0.5, None, 2)]
                assert_right(agrees(measured, lambda ours, theirs, *_: theirs / ours, cases))
            """),
            mistake=(
                "cold",
                cleandoc("""
                    def times_faster(ours, theirs, clock, pairs):
                        ratios = []
                        for _ in range(pairs):
                            start = clock()
                            ours()
                            middle = clock()
                            theirs()
                            ratios.append((clock() - middle) / (middle - start))
                        return statistics.median(ratios)
                """),
            ),
        ),
    ),
)

ARCHITECTURES = Assignment(
    "06_architectures",
    cleandoc("""
        import numpy as np

        from teachllama.check import notebook06 as check
        from teachllama.check.core import assert_right
    """),
    (
        Exercise(
            points=(1, 1),
            hidden=cleandoc("""
                rng = np.random.default_rng(1)
                heads = [(rng.normal(size=n),) for n in (2, 6, 64)]
                assert_right(agrees(neox, lambda h: h.reshape(-1, 2).T.ravel(), heads))
            """),
            mistake=(
                "backwards",
                cleandoc("""
                    def neox(head):
                        return head.reshape(2, -1).T.ravel()
                """),
            ),
        ),
        Exercise(
            points=(2, 1),
            hidden=cleandoc("""
                def by_masking(scores, k):
                    kept = np.where(scores >= np.sort(scores)[-k], np.exp(scores), 0)
                    return kept / kept.sum()

                rng = np.random.default_rng(2)
                assert_right(agrees(route, by_masking, [(rng.normal(size=n), k) for n, k in ((5, 2), (16, 4), (2, 2))]))
            """),
            mistake=(
                "not_shared_out",
                cleandoc("""
                    def route(scores, k):
                        p = np.exp(scores - scores.max())
                        p /= p.sum()
                        p[np.argsort(scores)[:-k]] = 0
                        return p
                """),
            ),
        ),
        Exercise(
            points=(1, 1),
            hidden=cleandoc("""
                cases = [(np.array(shape), b) for shape, b in (((61, 512, 64, 128), 1), ((12, 128, 32, 9), 2))]
                assert_right(agrees(latent_bytes, lambda s, b: b * s[0] * (s[1] + s[2]), cases))
            """),
            mistake=(
                "values_too",
                cleandoc("""
                    def latent_bytes(shape, nbytes):
                        n_layers, rank, rotating, heads = shape
                        return n_layers * (2 * rank + rotating) * nbytes
                """),
            ),
        ),
        Exercise(
            points=(2, 2),
            hidden=cleandoc("""
                def waits(program):
                    count, dirty = 0, []
                    for split, reads, writes in program:
                        if any(r in dirty for r in reads):
                            count, dirty = count + 1, []
                        dirty += [writes] * split
                    return count

                rng = np.random.default_rng(3)
                programs = [
                    [(bool(rng.integers(2)), tuple(rng.integers(0, 6, 2).tolist()), int(rng.integers(0, 6)))
                     for _ in range(n)]
                    for n in (0, 5, 20, 60)
                ]
                assert_right(agrees(barriers, waits, [(p,) for p in programs]))
            """),
            mistake=(
                "never_forgotten",
                cleandoc("""
                    def barriers(program):
                        count, in_shares = 0, set()
                        for split, reads, writes in program:
                            count += bool(in_shares & set(reads))
                            if split:
                                in_shares.add(writes)
                        return count
                """),
            ),
        ),
        Exercise(
            points=(1, 1),
            hidden=cleandoc("""
                cases = [(np.array(shape),) for shape in ((32, 4, 700, 1234), (2, 1, 10, 30))]
                assert_right(agrees(share_read, lambda s: (s[3] + s[1] * s[2]) / (s[3] + s[0] * s[2]), cases))
            """),
            mistake=(
                "experts_alone",
                cleandoc("""
                    def share_read(shape):
                        return shape[1] / shape[0]
                """),
            ),
        ),
    ),
)

EMBEDDINGS = Assignment(
    "07_embeddings",
    cleandoc("""
        import numpy as np

        from teachllama.check import notebook07 as check
        from teachllama.check.core import assert_right
    """),
    (
        Exercise(
            points=(1, 1),
            hidden=cleandoc("""
                rng = np.random.default_rng(7)
                assert_right(agrees(my_mean_pool, lambda states: sum(states) / len(states),
                                    [(rng.normal(size=shape),) for shape in ((1, 5), (6, 2), (30, 8))]))
            """),
            mistake=(
                "wrong_axis",
                cleandoc("""
                    def my_mean_pool(states):
                        return states.mean(axis=1)
                """),
            ),
        ),
        Exercise(
            points=(2, 1),
            hidden=cleandoc("""
                def from_directions(a, b):
                    return np.sum(a / np.linalg.norm(a) * (b / np.linalg.norm(b)))

                rng = np.random.default_rng(8)
                cases = [(scale * rng.normal(size=d), rng.normal(size=d)) for scale, d in ((1, 3), (50, 20), (0.01, 7))]
                assert_right(agrees(my_cosine, from_directions, cases))
            """),
            mistake=(
                "dot",
                cleandoc("""
                    def my_cosine(a, b):
                        return a @ b
                """),
            ),
        ),
        Exercise(
            points=(2, 1),
            hidden=cleandoc("""
                def by_distance(vectors, i):
                    far = np.linalg.norm(vectors - vectors[i], axis=1)
                    return min((j for j in range(len(vectors)) if j != i), key=far.__getitem__)

                rows = np.random.default_rng(9).normal(size=(9, 4))
                rows /= np.linalg.norm(rows, axis=1, keepdims=True)
                assert_right(agrees(my_nearest, by_distance, [(rows, i) for i in range(9)]))
            """),
            mistake=(
                "itself",
                cleandoc("""
                    def my_nearest(vectors, i):
                        return int(np.argmax(vectors @ vectors[i]))
                """),
            ),
        ),
        Exercise(
            points=(2, 1),
            hidden=cleandoc("""
                def centred(vectors):
                    moved = vectors - sum(vectors) / len(vectors)
                    return np.stack([row / np.sqrt(row @ row) for row in moved])

                rng = np.random.default_rng(10)
                cases = [(offset + rng.normal(size=shape),) for offset, shape in ((3, (4, 6)), (-20, (12, 3)))]
                assert_right(agrees(my_centring, centred, cases))
            """),
            mistake=(
                "normalized_before",
                cleandoc("""
                    def my_centring(vectors):
                        units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
                        return units - units.mean(axis=0)
                """),
            ),
        ),
        Exercise(
            function="index_bytes(dim)",
            given="dim = 576  # SmolLM2's",
            replace={"mean.shape[1]": "dim"},
            points=(1, 1),
            hidden=cleandoc("""
                for dim in (384, 1024):
                    assert_right(check.index_bytes(index_bytes(dim), n_texts=1_000_000, dim=dim))
            """),
            mistake=(
                "float64",
                cleandoc("""
                    def index_bytes(dim):
                        return 1_000_000 * dim * 8
                """),
            ),
        ),
    ),
)

ASSIGNMENTS = (
    A_TRANSFORMER,
    HELLO_GENERATION,
    CHAT_AND_TEMPLATES,
    SAMPLING,
    SESSIONS_AND_MEMORY,
    PERFORMANCE,
    ARCHITECTURES,
    EMBEDDINGS,
)
