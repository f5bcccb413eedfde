(() => {
  const later = document.getElementById("later");
  const wayOn = document.getElementById("way-on");
  let news, timer, left = false;
  // Put in, not unhidden: a live region tells a screen reader of what comes into it.
  if (wayOn) setTimeout(() => later.append(wayOn.content), 1000 * later.dataset.seconds);
  const leave = () => { left = true; clearTimeout(timer); if (news) news.close(); };
  // Once: setting out again would cut off the first try, and a merchant's slow page would never come.
  const go = (url) => { if (!left) { leave(); location.replace(url); } };
  const goOn = () => go(location.pathname);
  const waited = () => Number(later.dataset.waited) + Math.round(performance.now() / 1000);
  const lookAgain = () => { if (!timer) timer = setTimeout(() => go(`?waited=${waited()}`), 5000); };
  later.addEventListener("click", (event) => { if (event.target.closest("a")) leave(); });
  if (window.EventSource) {
    news = new EventSource(location.pathname + "/news");
    news.addEventListener("final", goOn);
    // At every break: a stream that never comes about is tried for ever, and nobody looks.
    news.addEventListener("error", lookAgain);
  } else lookAgain();
  addEventListener("pageshow", (event) => { if (event.persisted) { left = false; goOn(); } });
})();
