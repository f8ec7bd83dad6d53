"""The miniature world: scenes, their language, a tokenizer, a language model and a CLIP teacher, all made from nothing."""
