(() => {
  const lost = document.getElementById("lost");
  let heard = new Date();
  let timer = 0;

  const details = root => new Map([...root.querySelectorAll("details[data-key]")].map(d => [d.dataset.key, d]));

  // Somebody who selects text, a stack say, wants to copy it.
  function selecting(main) {
    const selection = getSelection();
    return !!selection && !selection.isCollapsed && main.contains(selection.anchorNode);
  }

  // What was opened and closed stays so, and so do the scroll position and the focus.
  function show(main, next) {
    const before = details(main);
    const focused = document.activeElement?.closest?.("details[data-key]")?.dataset.key;
    for (const [key, d] of details(next)) {
      if (before.has(key)) d.open = before.get(key).open;
    }
    const { scrollX, scrollY } = window;
    main.replaceWith(next);
    scrollTo({ left: scrollX, top: scrollY, behavior: "instant" });
    if (focused) details(next).get(focused)?.querySelector("summary").focus({ preventScroll: true });
  }

  async function refresh() {
    const main = document.querySelector("main");
    try {
      const answer = await fetch(location.href, {
        headers: { Accept: "text/html" }, cache: "no-store", signal: AbortSignal.timeout(10000),
      });
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const next = page.querySelector("main[data-refresh]");
      if (!next) throw new Error("HTTP " + answer.status);
      heard = new Date();
      lost.hidden = true;
      if (!selecting(main)) {
        show(main, document.adoptNode(next));
        document.title = page.title;
      }
    } catch {
      const time = lost.querySelector("time");
      time.dateTime = heard.toISOString();
      time.textContent = heard.toLocaleTimeString();
      lost.hidden = false;
    }
    schedule();
  }

  function schedule() {
    clearTimeout(timer);
    if (!document.hidden) timer = setTimeout(refresh, 1000 * document.querySelector("main").dataset.refresh);
  }

  document.addEventListener("visibilitychange", () => { clearTimeout(timer); if (!document.hidden) refresh(); });
  schedule();
})();
