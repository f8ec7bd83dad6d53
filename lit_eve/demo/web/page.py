"""The page: Gradio's components, and which action each of them calls."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import gradio as gr

from lit_eve.demo.web import render
from lit_eve.demo.web.actions import LONGEST_ANSWER, TEMPERATURES, TOP_PS, Actions, Change
from lit_eve.demo.web.decoding import Sampling
from lit_eve.demo.web.sessions import Sessions
from lit_eve.errors import LitEveError

FOLDER = Path(__file__).parent
CSS = (FOLDER / "page.css").read_text(encoding="utf-8")
HEAD = f"<script>{(FOLDER / 'page.js').read_text(encoding='utf-8')}</script>"
NOBODY = "none"
QUIET: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None, "api_visibility": "private"}
METHODS = [("Attention", "attention"), ("Causal: patches blanked one by one", "causal")]
ADDER = """
<div class="tools">
  <button type="button" class="add">Add images</button>
  <button type="button" class="camera">Camera</button>
  <input type="file" accept="image/*" multiple hidden aria-label="Image files">
  <span class="hint">or paste, or drop them here</span>
</div>
<div class="camera-view" hidden>
  <video playsinline muted></video>
  <button type="button" class="shot">Take the picture</button>
</div>
<p class="told error" role="alert"></p>
"""


def build_page(actions: Actions, sessions: Sessions) -> gr.Blocks:
    """The page, ready to be launched.

    Args:
        actions: what users can do.
        sessions: where they are remembered.
    """

    def forget(request: gr.Request) -> None:
        sessions.close(request.session_hash)

    names = list(actions.engine.decoders)
    decoders = [decoder.model.config.text_config for decoder in actions.engine.decoders.values()]
    layers, heads = (max(getattr(one, f"num_{key}") for one in decoders) for key in ("hidden_layers", "attention_heads"))

    with gr.Blocks(title="lit_eve", analytics_enabled=False, fill_width=True) as page:
        with gr.Row(elem_id="columns"):
            with gr.Column(scale=3, min_width=320, elem_id="talk"):
                _html("<h1>lit_eve</h1><p class='hint'>Ask models without a vision encoder about images.</p>", "title")
                with gr.Row(visible=len(names) > 1):
                    model = gr.Dropdown(names, value=names[0], label="Model", filterable=False, min_width=200)
                    other = gr.Dropdown([NOBODY, *names], value=NOBODY, label="Compare with", filterable=False, min_width=200)
                history = _html(render.WELCOME, "history", "litEve.words(element, (name, data) => trigger('word', data))")
                live = _html("", "live")
                status = _html("", "status", "watch('received', () => litEve.received(props.received))", received=0)
                examples = _html(render.examples(actions.examples), "examples", "litEve.indexed(element, trigger, 'example')")
                pictures = _html("", "pictures", "litEve.indexed(element, trigger, 'removal')")
                with gr.Row(elem_id="ask"):
                    question = gr.Textbox(
                        label="Question", placeholder="Ask about the images", lines=1, max_lines=8, scale=4, elem_id="question"
                    )
                    ask = gr.Button("Ask", variant="primary", scale=0, min_width=80, elem_id="ask-button")
                adder = _html(
                    ADDER, "adder", f"litEve.adder(element, (name, data) => trigger('image', data), {actions.limits.bytes})"
                )
                with gr.Row(elem_id="buttons"):
                    stop, retry, edit, clear = (
                        gr.Button(name, size="md", min_width=70, elem_id=name.lower())
                        for name in ("Stop", "Retry", "Edit", "Clear")
                    )
                with gr.Accordion("How answers are drawn", open=False):
                    with gr.Row():
                        temperature = gr.Slider(*TEMPERATURES, 0, step=0.05, label="Temperature (0: greedy)", min_width=200)
                        top_p = gr.Slider(*TOP_PS, 1, step=0.05, label="Top-p", min_width=200)
                    with gr.Row():
                        length = gr.Slider(
                            1, LONGEST_ANSWER, 256, step=1, label="Longest answer, in tokens", min_width=200, elem_id="length"
                        )
                        seed = gr.Number(-1, label="Seed (-1: another each time)", precision=0, min_width=200)
            with gr.Column(scale=2, min_width=320, elem_id="look"):
                _html("<h2>Where it looked</h2>", "look-title")
                maps = _html(render.NOTHING_CHOSEN, "maps")
                method = gr.Radio(METHODS, value="attention", label="What is shown", elem_id="method")
                layer = gr.Slider(0, layers, 0, step=1, label="Layer of the attention (0: mean of all)", elem_id="layer")
                head = gr.Slider(0, heads, 0, step=1, label="Head of the attention (0: mean of all)", elem_id="head")

        shown = [history, live, status, pictures, question, maps, layer, head]
        sampling, looking = [model, other, temperature, top_p, length, seed], [method, layer, head]
        wire = _Wiring(sessions, shown)
        wire(page.load, lambda session, event: actions.show(session))
        wire(adder.image, lambda session, event: actions.upload(session, event._data), trigger_mode="multiple")
        wire(pictures.removal, lambda session, event: actions.remove_image(session, _index(event)))
        wire(examples.example, lambda session, event: actions.take_example(session, _index(event)))
        for trigger in (question.submit, ask.click):
            wire(trigger, lambda session, event, text, *how: actions.ask(session, text, *_how(*how)), [question, *sampling])
        wire(retry.click, lambda session, event, *how: actions.retry(session, *_how(*how)), sampling)
        for button, action in ((stop, actions.stop), (edit, actions.edit), (clear, actions.clear)):
            wire(button.click, lambda session, event, action=action: action(session))
        wire(history.word, lambda session, event, *which: actions.look(session, event._data, *_which(*which)), looking)
        method.input(lambda chosen: [gr.update(interactive=chosen == "attention")] * 2, method, [layer, head], **QUIET)
        for choice in looking:
            wire(
                choice.input,
                lambda session, event, *which: actions.look_again(session, *_which(*which)),
                looking,
                "always_last",
            )
        page.unload(forget)
    return page


class _Wiring:
    """Connects events of the page with actions.

    Args:
        sessions: where users are remembered.
        shown: the components that a `Change` is about.
    """

    def __init__(self, sessions: Sessions, shown: list[Any]) -> None:
        self.sessions, self.shown = sessions, shown

    def __call__(
        self, listen: Callable, act: Callable, inputs: list[Any] | None = None, trigger_mode: str = "multiple"
    ) -> None:
        """Let an event call ``act(session, event, *values of the inputs)``, and show what it says or raises."""

        async def run(request: gr.Request, event: gr.EventData, *values: Any) -> AsyncIterator[list[Any]]:
            try:
                result = act(self.sessions.of(request.session_hash), event, *values)
                if inspect.isasyncgen(result):
                    async with aclosing(result):  # or who closes the page would be answered all the same
                        async for change in result:
                            yield _updates(change)
                else:
                    yield _updates(await result if inspect.isawaitable(result) else result)
            except LitEveError as error:
                yield _updates(Change(status=render.message(str(error), is_error=True)))

        listen(
            run,
            inputs,
            self.shown,
            trigger_mode=trigger_mode,
            preprocess=False,  # Gradio refuses numbers beyond the ends of a slider with a traceback in the log
            **QUIET,
        )


def _html(value: str, name: str, js: str | None = None, **props: Any) -> gr.HTML:
    return gr.HTML(value, elem_id=name, apply_default_css=False, js_on_load=js, **props)


def _index(event: gr.EventData) -> Any:
    return event._data.get("index") if isinstance(event._data, dict) else None


def _how(model: Any, other: Any, temperature: Any, top_p: Any, length: Any, seed: Any) -> tuple[list[str], Sampling]:
    """The models that are asked, and how they draw their answers."""
    models = [str(name) for name in ((model,) if other == NOBODY else (model, other))]
    try:
        return models, Sampling(int(length), float(temperature), float(top_p), -1 if seed is None else int(seed))
    except (TypeError, ValueError, OverflowError) as error:
        raise LitEveError("temperature, top-p, longest answer and seed must be numbers") from error


def _which(method: Any, layer: Any, head: Any) -> tuple[Any, int, int]:
    """How a word is looked into."""
    try:
        return method, int(layer), int(head)
    except (TypeError, ValueError, OverflowError) as error:
        raise LitEveError("layer and head must be numbers") from error


def _updates(change: Change) -> list[Any]:
    """What Gradio is told, in the order of the components that are shown."""
    values = [change.history, change.live, change.status, change.pictures, change.question, change.maps]
    updates = [gr.skip() if value is None else gr.update(value=value) for value in values]
    if change.received is not None:
        updates[2] = gr.update(value=change.status, received=change.received)
    for most, chosen in ((change.layers, change.layer), (change.heads, change.head)):
        updates.append(gr.skip() if most is None else gr.update(maximum=most, value=chosen))
    return updates
