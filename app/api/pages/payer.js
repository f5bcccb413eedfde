(() => {
  const later = document.getElementById("later");
  const wayOn = document.getElementById("way-on");
  // Put in, not unhidden: a live region tells a screen reader of what comes into it.
  if (wayOn) setTimeout(() => later.append(wayOn.content), 1000 * later.dataset.seconds);
  const goOn = () => location.replace(location.pathname);
  const waited = () => Number(later.dataset.waited) + Math.round(performance.now() / 1000);
  const lookAgain = () => setTimeout(() => location.replace(`?waited=${waited()}`), 5000);
  if (window.EventSource) {
    const news = new EventSource(location.pathname + "/news");
    news.addEventListener("final", goOn);
    // At every break: a stream that never comes about is tried for ever, and nobody looks.
    news.addEventListener("error", lookAgain);
  } else lookAgain();
  addEventListener("pageshow", (event) => { if (event.persisted) goOn(); });
})();
