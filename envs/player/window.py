"""The player's game in a window, where there is a display."""

import numpy as np
from PIL import Image

from envs.player.game import STEPS_PER_SECOND, Game
from envs.viewer import why_no_window
from utils.cli import UserError

SIDE = 480  # of a picture, in pixels
TITLE = "CarRacing, as M dreams it: arrows, m, tab, b, p, n, r"


def play(game: Game) -> None:
    """Play until the window is closed. Raises UserError where there is none."""
    reason = why_no_window()
    if reason is not None:
        raise UserError(f"--window: {reason}; without --window it is played in a browser")
    import pygame

    pygame.init()
    pygame.display.set_caption(TITLE)
    screen = pygame.display.set_mode((2 * SIDE, SIDE + 30))
    font, clock = pygame.font.Font(None, 24), pygame.time.Clock()
    single, message = False, ""
    commands = {
        pygame.K_m: game.hand_over,
        pygame.K_TAB: game.switch,
        pygame.K_b: lambda: game.look_at("dream" if game.view == "both" else "both"),
        pygame.K_r: game.reset,
    }
    try:
        while True:
            for event in pygame.event.get():
                pressed = event.key if event.type == pygame.KEYDOWN else None
                if event.type == pygame.QUIT or pressed in (pygame.K_ESCAPE, pygame.K_q):
                    return
                if pressed in commands:
                    try:
                        commands[pressed]()
                        message = ""
                    except ValueError as error:
                        message = str(error)
                elif pressed == pygame.K_p:
                    game.paused = not game.paused
                elif pressed == pygame.K_n:
                    game.paused = single = True
            held = pygame.key.get_pressed()
            game.target = np.array(
                [
                    float(held[pygame.K_RIGHT]) - float(held[pygame.K_LEFT]),
                    float(held[pygame.K_UP]),
                    0.8 * held[pygame.K_DOWN],
                ],
                np.float32,
            )
            if not game.paused or single:
                game.step()
            single = False
            draw(screen, font, game, message)
            pygame.display.flip()
            clock.tick(STEPS_PER_SECOND)
    finally:
        game.close()
        pygame.quit()


def draw(screen, font, game: Game, message: str) -> None:
    """The pictures beside each other, and a line below."""
    import pygame

    screen.fill((22, 24, 29))
    pictures, status = game.pictures(), game.status()
    left = 0 if len(pictures) == 2 else SIDE // 2
    line = ["the controller drives" if game.drives else "you drive"]
    for name, frame in pictures.items():
        image = Image.fromarray(frame).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        surface = pygame.image.frombytes(image.tobytes(), (SIDE, SIDE), "RGB")
        screen.blit(surface, (left, 0))
        left += SIDE
        side = status[name]
        line.append(f"{name}: step {side['steps']}, return {side['total']:.1f} {side['ended']}")
    screen.blit(font.render(message or "   ".join(line), True, (221, 221, 221)), (8, SIDE + 6))
