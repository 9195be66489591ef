// What is said about waiting, from a `queued` frame: honest, in one sentence.

const REASONS = {
  no_worker: "No worker is running. Your message is kept and will be answered when one starts.",
  loading: "The model is loading. Your message is kept and will be answered when it is ready.",
};

function ordinal(number) {
  const tens = number % 100;
  const suffix = tens >= 11 && tens <= 13 ? "th" : (["th", "st", "nd", "rd"][number % 10] ?? "th");
  return `${number}${suffix}`;
}

export function duration(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${Math.round(seconds / 3600)} h`;
}

export function waitText(frame) {
  if (REASONS[frame.reason]) {
    return frame.position > 1 ? `${REASONS[frame.reason]} It is the ${ordinal(frame.position)} in the queue.` : REASONS[frame.reason];
  }
  const place = frame.position <= 1 ? "Next in the queue" : `${ordinal(frame.position)} in the queue`;
  return frame.eta_s === null || frame.eta_s === undefined ? `${place}.` : `${place}, about ${duration(frame.eta_s)}.`;
}
