"""What the miniature EVE starts from, as EVE-7B starts from Vicuna and CLIP: a language model and a teacher, trained here."""
