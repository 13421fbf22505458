"""What was heard, as HTML: text, language, segments that can be heard, and files to download.

All that people or models said is escaped. Files are `data:` addresses within the page: nothing is written to disk, and
nothing is left to be removed.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from urllib.parse import quote

from data.texts import LANGUAGES_WITHOUT_SPACES
from infer.score.alignment import Unit
from infer.score.page.differences import Piece, find_difference
from infer.subtitles import FORMATS, Segment
from infer.transcript import Transcript
from serve.page.texts import Texts

MEDIA_TYPES = {"txt": "text/plain", "srt": "application/x-subrip", "vtt": "text/vtt", "json": "application/json"}


def show_empty(sentence: str) -> str:
    """Return what stands where nothing was heard yet."""
    return f'<div class="mv-empty"><span class="mv-wave" aria-hidden="true"></span><p>{escape(sentence)}</p></div>'


def show_error(texts: Texts, sentence: str, detail: str = "") -> str:
    """Return what went wrong, and below it in which words the service said so."""
    small = f"<small>{escape(detail)}</small>" if detail and detail != sentence else ""
    title = f"<strong>{escape(texts.error_title)}</strong>"
    return f'<div class="mv-error" role="alert">{title}<p>{escape(sentence)}</p>{small}</div>'


def show_progress(texts: Texts, num_done: int, num_windows: int, text: str) -> str:
    """Return how far a recording is, with the text so far."""
    said = texts.progress.format(done=num_done, total=num_windows) if num_windows > 1 else texts.reading
    share = 100 * num_done / num_windows if num_windows else 0
    bar = f'<div class="mv-bar"><span style="width:{share:.0f}%"></span></div>' if num_windows > 1 else ""
    so_far = f'<p class="mv-text mv-tentative" dir="auto">{escape(text)}</p>' if text else ""
    return f'<div class="mv-progress" role="status"><p class="mv-pulse">{escape(said)}</p>{bar}{so_far}</div>'


def show_transcript(
    transcript: Transcript, texts: Texts, *, language_name: str, elapsed_s: float, audio_path: str | None = None
) -> str:
    """Return a transcript with all that can be done with it.

    Args:
        transcript: what was heard.
        texts: of the page.
        language_name: of the language of the text.
        elapsed_s: from asking to answer.
        audio_path: of the recording, as the page serves it; None leaves the player out.
    """
    facts = [f"<li><b>{escape(language_name)}</b> {escape(_how_sure(transcript, texts))}</li>"]
    facts.append(f"<li>{escape(texts.duration)} {clock(transcript.duration_s)}</li>")
    if elapsed_s > 0:
        facts.append(f"<li>{escape(speed(transcript.duration_s, elapsed_s, texts))}</li>")
    if not transcript.text:
        return f'<div class="mv-result"><ul class="mv-facts">{"".join(facts)}</ul>{show_empty(texts.no_speech)}</div>'
    parts = [
        f'<ul class="mv-facts">{"".join(facts)}</ul>',
        f'<p class="mv-text" dir="auto" lang="{escape(transcript.language)}">{escape(transcript.text)}</p>',
    ]
    if transcript.is_cut:
        parts.append(f'<p class="mv-note">{escape(texts.cut)}</p>')
    parts.append(f'<div class="mv-actions">{_copy_button(texts)}{_downloads(transcript, texts)}</div>')
    parts.append(_segments(transcript, texts, audio_path))
    return f'<div class="mv-result">{"".join(parts)}</div>'


def show_live(lines: Sequence[str], final: str, tentative: str, texts: Texts, *, is_over: bool = False) -> str:
    """Return what was said while somebody speaks.

    Args:
        lines: utterances that are complete.
        final: of the one that goes on.
        tentative: what may still change.
        texts: of the page.
        is_over: whether nothing follows.
    """
    shown = "".join(f'<p class="mv-text" dir="auto">{escape(line)}</p>' for line in lines)
    if final or tentative:
        rest = f'<span class="mv-tentative">{escape(tentative)}</span>'
        shown += f'<p class="mv-text" dir="auto">{escape(final)}{rest}</p>'
    if not shown:
        return show_empty(texts.no_speech if is_over else texts.reading)
    note = texts.live_ended if is_over else texts.live_hint
    copy = f'<div class="mv-actions">{_copy_button(texts)}</div>' if is_over else ""
    return f'<div class="mv-result" aria-live="polite">{shown}{copy}<p class="mv-note">{escape(note)}</p></div>'


def show_comparison(texts: Texts, sides: Sequence[tuple[str, str, Transcript]]) -> str:
    """Return two transcripts beside each other with their differences marked.

    Args:
        texts: of the page.
        sides: (title, remark, transcript) of the left and the right one.
    """
    (_, _, left), (_, _, right) = sides
    by_character = left.language in LANGUAGES_WITHOUT_SPACES or right.language in LANGUAGES_WITHOUT_SPACES
    unit: Unit = "character" if by_character else "word"
    found = find_difference(left.text, right.text, unit=unit)
    count = max(
        sum(len(_units(piece.text, unit)) for piece in pieces if piece.kind != "equal")
        for pieces in (found.said, found.heard)
    )
    unit_name = texts.characters if by_character else texts.words
    verdict = texts.compare_differ.format(count=count, unit=unit_name) if count else texts.compare_same
    columns = "".join(
        f'<section><h3>{escape(title)}</h3><p class="mv-note">{escape(remark)}</p>'
        f'<p class="mv-text" dir="auto">{found.joint.join(_marked(piece) for piece in pieces)}</p></section>'
        for (title, remark, _), pieces in zip(sides, (found.said, found.heard), strict=True)
    )
    return (
        f'<div class="mv-result"><p class="mv-verdict">{escape(verdict)}</p><div class="mv-sides">{columns}</div></div>'
    )


def clock(time_s: float) -> str:
    """Write seconds as `1:02.3`."""
    tenths = round(10 * time_s)
    return f"{tenths // 600}:{tenths // 10 % 60:02d}.{tenths % 10}"


def speed(duration_s: float, elapsed_s: float, texts: Texts) -> str:
    """Write how many times faster than speech the work was, in two digits: `1.3 × real time` or `31 × real time`."""
    rate = duration_s / elapsed_s
    return f"{rate:.{0 if rate >= 10 else 1}f} {texts.speed}"


def _how_sure(transcript: Transcript, texts: Texts) -> str:
    if not transcript.is_detected or transcript.language != transcript.detected_language:
        return texts.given
    return f"{texts.detected}, {transcript.language_probability:.0%}"


def _copy_button(texts: Texts) -> str:
    return f'<button type="button" class="mv-copy" data-done="{escape(texts.copied)}">{escape(texts.copy)}</button>'


def _downloads(transcript: Transcript, texts: Texts) -> str:
    links = "".join(
        f'<a class="mv-download" download="transcript.{name}" href="{_data_uri(name, transcript)}">{name.upper()}</a>'
        for name in ("txt", "srt", "vtt", "json")
    )
    return f'<span class="mv-downloads" aria-label="{escape(texts.downloads)}">{links}</span>'


def _data_uri(name: str, transcript: Transcript) -> str:
    content = base64.b64encode(FORMATS[name](transcript).encode("utf-8")).decode()
    return f"data:{MEDIA_TYPES[name]};charset=utf-8;base64,{content}"


def _segments(transcript: Transcript, texts: Texts, audio_path: str | None) -> str:
    if not transcript.segments:
        return ""
    player = ""
    if audio_path is not None:
        # relative, so that it holds behind a proxy that serves the page under a prefix
        address = escape(f"gradio_api/file={quote(audio_path)}")
        player = f'<audio class="mv-player" controls preload="metadata" src="{address}"></audio>'
    rows = "".join(_segment_row(segment) for segment in transcript.segments)
    said = texts.words_hint if "mv-word" in rows else texts.segments_hint
    hint = f" <small>{escape(said)}</small>" if audio_path is not None else ""
    return f'<h3>{escape(texts.segments)}{hint}</h3>{player}<ol class="mv-segments">{rows}</ol>'


def _segment_row(segment: Segment) -> str:
    """Return a segment as one button; or, since a button holds no others, its time as one and its words beside it."""
    times = _span(segment.start_s, segment.end_s)
    when = f"<time>{clock(segment.start_s)} – {clock(segment.end_s)}</time>"
    words = _words(segment)
    said = f'<span dir="auto">{words or escape(segment.text)}</span>'
    if not words:
        return f'<li><button type="button" class="mv-segment" {times}>{when}{said}</button></li>'
    return f'<li><div class="mv-segment" {times}><button type="button" class="mv-when">{when}</button>{said}</div></li>'


def _words(segment: Segment) -> str:
    """Return the text of a segment with each word to be heard by itself; empty if it has no words, or they are others.

    One word of a segment is reached by the tab key and the others from there by arrows, so that nobody has to pass all
    words of a page.
    """
    shown, position = "", 0
    for i, word in enumerate(segment.words):
        begin = segment.text.find(word.text, position)
        if begin < 0:
            return ""
        shown += (
            f'{escape(segment.text[position:begin])}<span class="mv-word" role="button" '
            f'tabindex="{-1 if i else 0}" {_span(word.start_s, word.end_s)}>{escape(word.text)}</span>'
        )
        position = begin + len(word.text)
    return shown + escape(segment.text[position:]) if shown else ""


def _span(start_s: float, end_s: float) -> str:
    return f'data-start="{start_s:.3f}" data-end="{end_s:.3f}"'


def _units(text: str, unit: Unit) -> Sequence[str]:
    return text.split() if unit == "word" else text


def _marked(piece: Piece) -> str:
    text = "".join(f"<mark>{escape(part)}</mark>" if differs else escape(part) for differs, part in piece.parts)
    return text
