// Puts the page together.

const THEMES = { auto: "Theme: as the system", light: "Theme: light", dark: "Theme: dark" };

function setUpTheme() {
  const button = document.getElementById("theme");
  const keep = (theme) => {
    try {
      localStorage.setItem("segdet-theme", theme);
    } catch { /* a file's page may have no storage */ }
  };
  const kept = () => {
    try {
      return localStorage.getItem("segdet-theme");
    } catch {
      return null;
    }
  };
  const apply = (theme) => {
    document.documentElement.dataset.theme = theme;
    button.textContent = THEMES[theme];
  };
  apply(THEMES[kept()] ? kept() : "auto");
  button.addEventListener("click", () => {
    const names = Object.keys(THEMES);
    const next = names[(names.indexOf(document.documentElement.dataset.theme) + 1) % names.length];
    apply(next);
    keep(next);
  });
}

function setUpContents(sections) {
  const links = new Map(sections.map((one) => {
    const title = one.id === "summary" ? "Summary" : one.querySelector("h2").textContent;
    return [one, h("a", { href: `#${one.id}` }, title)];
  }));
  document.getElementById("contents").append(...[...links.values()].map((a) => h("li", {}, a)));
  const seen = new Set();
  const mark = () => {
    const first = sections.find((one) => seen.has(one));
    links.forEach((link, one) => {
      if (one === first) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    });
  };
  const observer = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) seen.add(target);
      else seen.delete(target);
    }
    mark();
  }, { rootMargin: "-80px 0px -60% 0px" });
  sections.forEach((one) => observer.observe(one));
}

setUpTheme();
const sections = [
  summarySection(), metricsSection(), gallerySection(), curvesSection(), dataSection(),
  configSection(),
];
document.getElementById("main").append(...sections);
setUpContents(sections);
document.documentElement.dataset.ready = "yes";
