(() => {
  const again = () => location.replace(location.pathname);
  const later = document.getElementById("later");
  const wayOn = document.getElementById("way-on");
  // Put in, not unhidden: a live region tells a screen reader of what comes into it.
  if (wayOn) setTimeout(() => later.append(wayOn.content), 1000 * later.dataset.seconds);
  const lookAgain = () => setTimeout(again, 5000);
  if (window.EventSource) {
    const news = new EventSource(location.pathname + "/news");
    news.addEventListener("final", again);
    news.addEventListener("error", () => { if (news.readyState === EventSource.CLOSED) lookAgain(); });
  } else lookAgain();
  addEventListener("pageshow", (event) => { if (event.persisted) again(); });
})();
