"""Models behind OpenAI's protocol: chat completions with images, batched by the engine of the web demo."""
