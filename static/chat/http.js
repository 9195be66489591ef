// The page's own small requests: JSON back, the CSRF token along, an error that says what to do.

export class RequestFailed extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

const cookie = (name) => document.cookie.split("; ").find((part) => part.startsWith(`${name}=`))?.slice(name.length + 1);

async function request(path, options) {
  let response;
  try {
    response = await fetch(path, { credentials: "same-origin", headers: { Accept: "application/json" }, ...options });
  } catch {
    throw new RequestFailed("offline", "The service cannot be reached. Try again in a moment.");
  }
  const body = await response.json().catch(() => null);
  if (response.ok && body) return body;
  throw new RequestFailed(
    body?.code ?? `http_${response.status}`,
    body?.message ?? "The service could not do this. Reload the page and try again.",
  );
}

export const getJson = (path) => request(path, { method: "GET" });

export const postForm = (path, fields = {}) =>
  request(path, {
    method: "POST",
    headers: { Accept: "application/json", "X-CSRFToken": cookie("csrftoken") ?? "" },
    body: new URLSearchParams(fields),
  });
