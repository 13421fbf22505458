// Segments and words are heard and texts copied; one listener for all, since results come and go.
const SHORTEST_S = 0.1; // that is played; a word may have no length
document.addEventListener("click", (event) => {
  const span = event.target.closest(".mv-word, .mv-segment");
  if (span) {
    const audio = span.closest(".mv-result").querySelector("audio.mv-player");
    const isMarking = event.detail > 0 && !document.getSelection().isCollapsed; // to copy some words
    if (!audio || isMarking) return;
    const start = Number(span.dataset.start);
    audio.mvSpan = { start, end: Math.max(Number(span.dataset.end), start + SHORTEST_S) };
    audio.currentTime = start;
    audio.play().catch(() => {}); // another click came first, or the recording was removed after its hour
    return;
  }
  const copy = event.target.closest(".mv-copy");
  if (copy) {
    const texts = [...copy.closest(".mv-result").querySelectorAll(".mv-text")].map((text) => text.textContent);
    const said = copy.textContent;
    navigator.clipboard.writeText(texts.join("\n")).then(() => {
      copy.textContent = copy.dataset.done;
      setTimeout(() => { copy.textContent = said; }, 1500);
    });
  }
});

// On a phone the result stands below the form.
document.addEventListener("click", (event) => {
  const go = event.target.closest("#mv-go, #mv-compare-go");
  if (!go || window.innerWidth > 640) return;
  const result = document.querySelector(go.id === "mv-go" ? "#mv-result" : "#mv-compare-result");
  setTimeout(() => result.scrollIntoView({ behavior: "smooth", block: "start" }), 250);
});

// What is heard now is lit, and what was clicked ends where it ends. Events of players do not bubble.
const followPlayer = (audio) => {
  const time = audio.currentTime;
  if (audio.mvSpan && time >= audio.mvSpan.end) {
    audio.mvSpan = null;
    audio.pause();
  }
  audio.closest(".mv-result")?.querySelectorAll(".mv-word, .mv-segment").forEach((span) => {
    const isHeard = !audio.paused && Number(span.dataset.start) <= time && time < Number(span.dataset.end);
    span.classList.toggle("is-playing", isHeard);
  });
};
const onPlayer = (name, listen) => document.addEventListener(name, (event) => {
  if (event.target.matches?.("audio.mv-player")) listen(event.target);
}, true);
onPlayer("play", (audio) => {
  const follow = () => {
    followPlayer(audio);
    if (!audio.paused && audio.isConnected) requestAnimationFrame(follow);
  };
  follow();
});
onPlayer("timeupdate", followPlayer); // there are no frames while the page is in the background
onPlayer("pause", (audio) => {
  if (audio.paused) audio.mvSpan = null; // and was not started again since
  followPlayer(audio);
});
onPlayer("seeking", (audio) => {
  const span = audio.mvSpan;
  if (span && (audio.currentTime < span.start - 0.1 || audio.currentTime > span.end)) audio.mvSpan = null; // by its bar
});

// A segment is one stop of the tab key; arrows go through its words.
document.addEventListener("keydown", (event) => {
  const word = event.target.closest(".mv-word");
  if (!word) return;
  if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    word.click();
    return;
  }
  const isLeftward = getComputedStyle(word).direction === "rtl";
  const step = { ArrowRight: isLeftward ? -1 : 1, ArrowLeft: isLeftward ? 1 : -1 }[event.key];
  const words = [...word.parentElement.querySelectorAll(".mv-word")];
  const next = words[words.indexOf(word) + (step ?? 0)];
  if (!step || !next) return;
  event.preventDefault();
  words.forEach((other) => { other.tabIndex = -1; });
  next.tabIndex = 0;
  next.focus();
});
