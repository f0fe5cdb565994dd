// What scrolls sideways can be reached and scrolled by the keyboard.
document.addEventListener("DOMContentLoaded", () => {
  for (const part of document.querySelectorAll(".md-typeset__scrollwrap, .md-typeset pre > code")) {
    if (part.scrollWidth > part.clientWidth) part.tabIndex = 0
  }
})

// The theme gives each block of code a <nav> with its copy button, once the page is there: no places to go to, so no landmarks.
new MutationObserver(() => {
  for (const buttons of document.querySelectorAll("nav.md-code__nav:not([role])")) buttons.setAttribute("role", "none")
}).observe(document.documentElement, {childList: true, subtree: true})
