"""The miniature world: procedural scenes, their language, a tokenizer, a language model and a CLIP teacher made from nothing."""
