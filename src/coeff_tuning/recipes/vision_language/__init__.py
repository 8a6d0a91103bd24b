"""Images and text: one language model for VQA, GQA, NLVR2 and captions, with image features before its text."""
