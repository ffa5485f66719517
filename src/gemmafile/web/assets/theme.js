// Runs before the first paint: the page has scripts, and these are its colours.
document.documentElement.className = "js";
try {
  const theme = localStorage.getItem("gemmafile-theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // No storage: the system's theme it is.
}
