// Runs before anything is drawn: a page that turns dark a moment later hurts the eyes.
(() => {
  const chosen = localStorage.getItem("gradwire-theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
