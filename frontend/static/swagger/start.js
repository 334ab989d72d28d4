// A file of its own, because the page's Content-Security-Policy allows no script inside it.
"use strict";

SwaggerUIBundle({
  url: "../metadata.json", // relative: also right behind a proxy that adds a prefix
  dom_id: "#page",
  deepLinking: true,
  tryItOutEnabled: false,
  displayRequestDuration: true,
  onComplete: () => {
    const title = document.querySelector(".info .title");
    if (title && title.firstChild) document.title = title.firstChild.textContent.trim() + " - API";
  },
});
