// The live tab records through a module that gradio loads late; a press that comes before is kept until it is ready.
const RECORDER_S = 10; // that a press waits; then gradio may say itself what is wrong
const recorder = RECORDER && import(new URL(RECORDER, document.baseURI)).catch(() => null);
const sleep = (ms) => new Promise((resolve) => { setTimeout(resolve, ms); });
const untilRecorderIsReady = async () => {
  const found = await recorder;
  const end = performance.now() + 1000 * RECORDER_S;
  // Browsers write no WAV by themselves: it is supported once gradio has registered its encoder.
  while (found && !found.MediaRecorder.isTypeSupported("audio/wav") && performance.now() < end) await sleep(20);
  await sleep(20); // gradio has the recorder a few callbacks later
};
document.addEventListener("click", async (event) => {
  const button = event.target.closest("#mv-live-audio .record-button");
  if (!button || !recorder || button.mvIsReady) return;
  event.preventDefault();
  event.stopImmediatePropagation();
  if (button.ariaBusy) return; // pressed again meanwhile
  button.ariaBusy = "true";
  await untilRecorderIsReady();
  button.ariaBusy = null;
  button.mvIsReady = true;
  button.click();
}, true);
