// Not a module: runs before the first paint, so that a remembered theme never flashes the other one.
(() => {
  try {
    const theme = JSON.parse(localStorage.getItem("chat.theme"));
    if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
  } catch { /* storage forbidden: the system's theme */ }
})();
