// Segments are heard and texts copied; one listener for all, since results come and go.
document.addEventListener("click", (event) => {
  const segment = event.target.closest(".mv-segment");
  if (segment) {
    const audio = segment.closest(".mv-result").querySelector("audio.mv-player");
    if (!audio) return;
    const end = Number(segment.dataset.end);
    document.querySelectorAll(".mv-segment.is-playing").forEach((other) => other.classList.remove("is-playing"));
    segment.classList.add("is-playing");
    if (audio.mvStop) audio.removeEventListener("timeupdate", audio.mvStop);
    audio.mvStop = () => {
      if (audio.currentTime < end) return;
      audio.pause();
      segment.classList.remove("is-playing");
      audio.removeEventListener("timeupdate", audio.mvStop);
    };
    audio.currentTime = Number(segment.dataset.start);
    audio.addEventListener("timeupdate", audio.mvStop);
    audio.play();
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
