"""What the page says, in English and in Chinese."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from serve.errors import ServiceError


@dataclass(frozen=True)
class Texts:
    """One language of the page; attributes are named after what they stand at."""

    code: str
    locale: str
    """As browsers call it; what gradio itself says follows it."""
    other_code: str
    other_name: str
    """Of the other language, in itself."""
    tagline: str
    tab_transcribe: str
    tab_live: str
    tab_compare: str
    audio: str
    microphone: str
    language: str
    automatic: str
    task: str
    transcribe: str
    translate: str
    model: str
    profile: str
    more: str
    go: str
    stop: str
    result: str
    empty: str
    empty_live: str
    empty_compare: str
    reading: str
    progress: str
    """With `{done}` and `{total}` windows."""
    stopped: str
    segments: str
    segments_hint: str
    word_times: str
    word_times_info: str
    no_word_times: str
    words_hint: str
    copy: str
    copied: str
    downloads: str
    detected: str
    given: str
    duration: str
    speed: str
    cut: str
    no_speech: str
    live_hint: str
    live_final: str
    live_ended: str
    compare_go: str
    compare_left: str
    compare_right: str
    compare_hint: str
    compare_same: str
    compare_differ: str
    """With `{count}` and `{unit}`."""
    words: str
    characters: str
    no_audio: str
    limits: str
    """With `{mb}` and `{minutes}`."""
    error_title: str
    unexpected: str
    footer: str
    profiles: Mapping[str, str] = field(default_factory=dict)
    errors: Mapping[str, str] = field(default_factory=dict)
    """By the code of a `ServiceError`; others are told in the error's own words."""
    languages: Mapping[str, str] = field(default_factory=dict)
    """Names of languages by ISO code, where they are not the English ones."""

    def error(self, error: ServiceError) -> str:
        """Return what to tell a person."""
        return self.errors.get(error.code, error.message)

    def language_name(self, code: str, name: str) -> str:
        """Return the name of a language."""
        return self.languages.get(code, name)


ENGLISH = Texts(
    code="en",
    locale="en-US",
    other_code="zh",
    other_name="中文",
    tagline="Speech to text. Your recordings stay on this machine.",
    tab_transcribe="Transcribe",
    tab_live="Live",
    tab_compare="Compare",
    audio="Recording",
    microphone="Microphone",
    language="Language",
    automatic="Detect automatically",
    task="Task",
    transcribe="Write down what is said",
    translate="Translate into English",
    model="Model",
    profile="Way to decode",
    more="More options",
    go="Transcribe",
    stop="Stop",
    result="Text",
    empty="Upload a file or record your voice. The text appears here.",
    empty_live="Press Record and speak. The text appears while you do.",
    empty_compare="Give one recording to two models, or to two ways to decode, and see where they differ.",
    reading="Listening …",
    progress="Part {done} of {total} is done",
    stopped="Stopped.",
    segments="Segments",
    segments_hint="Click one to hear it.",
    word_times="Times of words",
    word_times_info="Every word can be heard by itself. Takes a little longer.",
    no_word_times="The runtime of this model does not find them; torch and ctranslate2 do.",
    words_hint="Click a word to hear it, or a time to hear the segment.",
    copy="Copy",
    copied="Copied",
    downloads="Download",
    detected="detected",
    given="as chosen",
    duration="Length",
    speed="× real time",
    cut="The model reached its limit somewhere; the end of a sentence may be missing.",
    no_speech="No speech was found in this recording.",
    live_hint="Black is final, grey may still change.",
    live_final="Final text",
    live_ended="The recording has ended.",
    compare_go="Compare",
    compare_left="Left",
    compare_right="Right",
    compare_hint="Two artefacts: start the service with artefact=[runs/a/export,runs/b/export].",
    compare_same="Both say the same.",
    compare_differ="They differ in {count} {unit}.",
    words="words",
    characters="characters",
    no_audio="There is no recording yet. Upload a file or record your voice first.",
    limits="Files up to {mb} MB and {minutes} minutes: WAV, MP3, FLAC, M4A, OGG and others.",
    error_title="That did not work",
    unexpected="Something went wrong on this machine. The log of the service says what.",
    footer="Programs use the API:",
    profiles={
        "greedy": "Fast (greedy)",
        "beam5": "Thorough (5 beams)",
        "longform": "Guarded: tries again where it doubts (longform)",
    },
    errors={
        "queue_full": "Many people are being served right now. Please try again in a moment.",
        "streams_full": "All places for live transcription are taken. Please try again in a minute.",
        "unavailable": "The service is just starting or stopping. Please try again in a moment.",
        "audio_too_long": "This recording is too long. Please cut it into parts.",
        "audio_too_short": "This recording is too short to hold a word.",
        "audio_invalid": "This file is not a recording that can be read. Try WAV, MP3, FLAC, M4A or OGG.",
    },
)

CHINESE = Texts(
    code="zh",
    locale="zh-CN",
    other_code="en",
    other_name="English",
    tagline="语音转文字。录音只留在这台机器上。",
    tab_transcribe="转写",
    tab_live="实时",
    tab_compare="对比",
    audio="录音",
    microphone="麦克风",
    language="语言",
    automatic="自动检测",
    task="任务",
    transcribe="转写为原文",
    translate="翻译成英文",
    model="模型",
    profile="解码方式",
    more="更多选项",
    go="开始转写",
    stop="停止",
    result="文本",
    empty="上传音频文件或直接录音，文本会显示在这里。",
    empty_live="点击录制并开始说话，文本会随之出现。",
    empty_compare="把同一段录音交给两个模型或两种解码方式，看看结果有什么不同。",
    reading="正在识别……",
    progress="已完成第 {done} 段，共 {total} 段",
    stopped="已停止。",
    segments="分段",
    segments_hint="点击任意一段即可收听。",
    word_times="逐词时间",
    word_times_info="每个词都可单独收听，用时略长。",
    no_word_times="此模型的运行时不支持逐词时间，torch 和 ctranslate2 支持。",
    words_hint="点击词语收听该词，点击时间收听整段。",
    copy="复制",
    copied="已复制",
    downloads="下载",
    detected="自动检测",
    given="手动指定",
    duration="时长",
    speed="倍实时速度",
    cut="模型在某处达到了长度上限，句尾可能不完整。",
    no_speech="这段录音里没有听到人声。",
    live_hint="黑色文字已确定，灰色文字还可能变化。",
    live_final="已确定的文本",
    live_ended="录音已结束。",
    compare_go="开始对比",
    compare_left="左侧",
    compare_right="右侧",
    compare_hint="对比两个模型：用 artefact=[runs/a/export,runs/b/export] 启动服务。",
    compare_same="两边结果完全相同。",
    compare_differ="有 {count} 个{unit}不同。",
    words="词",
    characters="字",
    no_audio="还没有录音。请先上传文件或录音。",
    limits="文件不超过 {mb} MB、{minutes} 分钟，支持 WAV、MP3、FLAC、M4A、OGG 等格式。",
    error_title="没有成功",
    unexpected="服务内部出错，详情见服务日志。",
    footer="供程序调用的接口：",
    profiles={
        "greedy": "快速(greedy)",
        "beam5": "精细，5 束搜索(beam5)",
        "longform": "稳健：存疑处自动重试(longform)",
    },
    errors={
        "queue_full": "当前使用的人较多，请稍后再试。",
        "streams_full": "实时转写的名额已满，请一分钟后再试。",
        "unavailable": "服务正在启动或停止，请稍后再试。",
        "audio_too_long": "录音太长，请切成几段后再试。",
        "audio_too_short": "录音太短，听不出一个词。",
        "audio_invalid": "无法读取这个文件。请使用 WAV、MP3、FLAC、M4A 或 OGG 格式的录音。",
        "audio_too_slow": "读取这个文件花的时间太长，请先转换格式。",
        "model_failed": "模型处理这段录音时失败，请重试。",
        "out_of_memory": "内存不足，请换用更短的录音。",
        "invalid_task": "这个模型不支持该任务。",
        "invalid_language": "这个模型不认识所选的语言。",
        "invalid_timestamp_granularities": "此模型的运行时不支持逐词时间。",
    },
    languages={
        **{"zh": "中文", "en": "英语", "ja": "日语", "ar": "阿拉伯语", "ru": "俄语", "de": "德语", "es": "西班牙语"},
        **{"fr": "法语", "ko": "韩语", "pt": "葡萄牙语", "it": "意大利语", "nl": "荷兰语", "tr": "土耳其语"},
        **{"pl": "波兰语", "vi": "越南语", "th": "泰语", "id": "印尼语", "hi": "印地语", "uk": "乌克兰语"},
        **{"yue": "粤语", "sv": "瑞典语", "fi": "芬兰语", "el": "希腊语", "he": "希伯来语", "fa": "波斯语"},
    },
)

TEXTS: Mapping[str, Texts] = {texts.code: texts for texts in (ENGLISH, CHINESE)}


def choose_texts(accepted: str) -> Texts:
    """Return the language of a browser.

    Args:
        accepted: its `Accept-Language`, such as `zh-CN,zh;q=0.9,en;q=0.8`.
    """
    ranked: list[tuple[float, int, str]] = []
    for i, part in enumerate(accepted.split(",")):
        name, _, weight = part.strip().partition(";q=")
        try:
            quality = float(weight or 1)
        except ValueError:
            continue
        ranked.append((-quality, i, name.split("-")[0].lower()))
    return next((TEXTS[name] for _, _, name in sorted(ranked) if name in TEXTS), ENGLISH)
