"""A command of the port with a watch around the functions that do the work, up to its first audio.

`python -m benchmarks.watch FILE COMMAND ...` writes the CPU seconds of each part to FILE as JSON.
"""

from time import process_time

BEGUN = process_time()  # before this file imports anything: the interpreter's own

import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from contextlib import contextmanager  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

PARTS = {
    "interpreter": "Python itself",
    "imports": "MLX, numpy, the port",
    "model": "the weights files' headers, the model built",
    "weights": "weights read",
    "fast forms": "what speed_up makes of them",
    "text": "tokenizer and normaliser, loaded and used",
    "voices": "saved ones read",
    "prompt": "a recording through the prompt encoders",
    "language model": "to the tokens of the first chunk",
    "flow": "ten steps of the flow decoder",
    "vocoder": "mel to samples",
    "rest": "arguments, checks, output",
}
# Weights that a part reads when it first runs.
NEEDS = {
    "prompt": ("speech_tokenizer", "speaker"),
    "language model": ("llm",),
    "flow": ("flow",),
    "vocoder": ("vocoder",),
}


class Watch:
    """CPU seconds of each part; a part within another counts for itself alone.

    Attributes:
        spent: seconds by part.
        model: that was loaded; its weights stay on disk until a part needs them.
        plain: weights before the fast forms, by part of the model.
    """

    def __init__(self) -> None:
        self.spent = dict.fromkeys(PARTS, 0.0) | {"interpreter": BEGUN}
        self.model: Any = None
        self.plain: dict[str, Any] = {}
        self._running, self._since = ["rest"], process_time()

    def turn(self) -> None:
        """Charge the seconds since the last turn to what ran."""
        now = process_time()
        self.spent[self._running[-1]] += now - self._since
        self._since = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What runs within is `name`."""
        self.turn()
        self._running.append(name)
        try:
            yield
        finally:
            self.turn()
            self._running.pop()

    def over(self, owner: Any, attribute: str, name: str, after: Callable[[Any], None] = lambda _: None) -> None:
        """Put a function or a method under watch, and the arrays and iterators that it returns."""
        function = getattr(owner, attribute)

        def watched(*given: Any, **named: Any) -> Any:
            with self.part(name):
                self.read(name)
                result = function(*given, **named)
                after(result)
                if type(result).__module__ == "mlx.core":
                    self.evaluate(result)
            return self.each(result, name) if isinstance(result, Iterator) else result

        setattr(owner, attribute, watched)

    def each(self, results: Iterator[Any], name: str) -> Iterator[Any]:
        """The same results, each made under watch."""
        while True:
            with self.part(name):
                result = next(results, self)
            if result is self:
                return
            yield result

    def read(self, name: str) -> None:
        """Read the weights that a part needs, then make the fast forms' own."""
        for root in NEEDS.get(name, ()) if self.model is not None else ():
            if root in self.plain:
                with self.part("weights"):
                    self.evaluate(self.plain.pop(root))
                with self.part("fast forms"):
                    self.evaluate(self.model[root].parameters())

    def evaluate(self, arrays: Any) -> None:
        """Compute arrays."""
        from mlx.core import eval as evaluate

        evaluate(arrays)

    def forms(self, speed_up: Callable[..., Any]) -> Callable[..., Any]:
        """`speed_up` under watch, that leaves to `read` what it makes."""

        def watched(model: Any, **named: Any) -> Any:
            self.plain = {root: dict(model[root].parameters()) for root in sum(NEEDS.values(), ())}
            with self.part("fast forms"):
                return speed_up(model, **named)

        return watched

    def keep(self, model: Any) -> None:
        """Remember the model that was loaded."""
        self.model = model


def main(file: Path, words: list[str]) -> None:
    """Run the command under watch; at the first audio, write the seconds and end."""
    watch = Watch()
    with watch.part("imports"):
        from port import cosyvoice3
        from port.app import arguments, cli
        from port.files import loading
        from port.flow.decoder import CausalMaskedDiffWithDiT
        from port.model import CosyVoice3Model
        from port.stream.flow import StreamingFlow

    def done(_: Any) -> None:
        watch.turn()
        file.write_text(json.dumps(watch.spent), encoding="utf-8")
        os._exit(0)

    front = cosyvoice3.CosyVoiceFrontEnd
    loading.speed_up = watch.forms(loading.speed_up)
    watch.over(cosyvoice3, "load_model", "model", watch.keep)
    watch.over(cosyvoice3, "load_voices", "voices")
    watch.over(cosyvoice3, "load_normalizer", "text")
    watch.over(cosyvoice3.CosyVoice3Tokenizer, "from_folder", "text")
    watch.over(front, "text_normalize", "text")
    for name in ("extract_speech_token", "extract_speech_feat", "extract_spk_embedding"):
        watch.over(front, name, "prompt")
    watch.over(CosyVoice3Model, "llm_job", "language model")
    watch.over(CausalMaskedDiffWithDiT, "inference", "flow")
    watch.over(StreamingFlow, "push", "flow")
    watch.over(CosyVoice3Model, "token2wav", "vocoder", done)
    sys.exit(cli.run(arguments.parser().parse_args(words)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
