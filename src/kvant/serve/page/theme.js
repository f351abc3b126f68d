// Runs before anything is drawn, so that a chosen theme does not flash. Not a module: those wait.
try {
  const theme = localStorage.getItem("kvant.theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Storage may be off; the system's theme is used.
}
